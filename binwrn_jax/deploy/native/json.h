/* A strict JSON parser that works in place: strings are unescaped where they lie in the text. */
#ifndef BINWRN_JSON_H
#define BINWRN_JSON_H

#include <stddef.h>
#include <stdint.h>

typedef enum {
  JSON_NULL,
  JSON_FALSE,
  JSON_TRUE,
  JSON_INTEGER, /* written without fraction and exponent */
  JSON_REAL,
  JSON_STRING,
  JSON_ARRAY,
  JSON_OBJECT
} json_type;

typedef struct {
  json_type type;
  uint32_t next;    /* index of the next element or member; 0: none. Index 0 is the root. */
  uint32_t first;   /* of an array or object: its first element, or the name of its first member */
  uint32_t count;   /* elements, or members: a member is two values in a row, its name and its value */
  char *text;       /* of a string: UTF-8, may contain 0 */
  size_t length;    /* of the text, in bytes */
  int64_t integer;  /* of an integer; those beyond 2^62 become +-2^62 */
  double real;      /* of any number */
} json_value;

typedef struct {
  json_value *values;
  uint32_t used, capacity;
} json_document;

typedef enum { JSON_OK, JSON_INVALID, JSON_NO_MEMORY } json_result;

/* Parses all of text[0..length), which it changes, and which must outlive the document. The document is
 * empty (all zero) before; binwrn_json_free must be called in any case. Refused: invalid UTF-8, half of a
 * surrogate pair, more than 64 arrays and objects inside each other, more than 2^20 of the characters , : [ {
 * outside of strings, numbers of more than 4300 characters, a name twice in an object. */
json_result binwrn_json_parse(json_document *document, char *text, size_t length);
void binwrn_json_free(json_document *document);

/* The value of a member, or NULL; `object` may be NULL or of another type. */
const json_value *binwrn_json_member(const json_document *document, const json_value *object, const char *name);
/* Element after `value`, or NULL. */
const json_value *binwrn_json_next(const json_document *document, const json_value *value);
/* First element of an array or name of the first member of an object, or NULL. */
const json_value *binwrn_json_first(const json_document *document, const json_value *value);
int binwrn_json_is_string(const json_value *value, const char *text);

#endif
