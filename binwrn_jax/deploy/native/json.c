#include "json.h"

#include <stdlib.h>
#include <string.h>

#define MAX_DEPTH 64
#define MAX_MARKS (1u << 20)
#define MAX_NUMBER 4300

typedef struct {
  json_document *document;
  char *text;
  size_t length, position;
  uint32_t marks; /* characters , : [ { so far; so there are at most MAX_MARKS + 1 values */
  json_result result;
} parser;

static int fail(parser *p, json_result result) {
  p->result = result;
  return 0;
}

static int invalid(parser *p) { return fail(p, JSON_INVALID); }

static void skip_space(parser *p) {
  while (p->position < p->length) {
    char c = p->text[p->position];
    if (c != ' ' && c != '\t' && c != '\n' && c != '\r') return;
    p->position++;
  }
}

static int at(const parser *p, char c) { return p->position < p->length && p->text[p->position] == c; }

/* A character that a further value comes with. */
static int mark(parser *p) { return ++p->marks <= MAX_MARKS || invalid(p); }

static int digit(const parser *p) {
  return p->position < p->length && p->text[p->position] >= '0' && p->text[p->position] <= '9';
}

/* A new value; its index, or 0 on failure (index 0 is the root, which cannot fail to be the first). */
static int new_value(parser *p, uint32_t *index) {
  json_document *d = p->document;
  if (d->used == d->capacity) {
    uint32_t capacity = d->capacity ? 2 * d->capacity : 256;
    json_value *values;
    values = realloc(d->values, capacity * sizeof *values);
    if (!values) return fail(p, JSON_NO_MEMORY);
    d->values = values;
    d->capacity = capacity;
  }
  *index = d->used++;
  memset(&d->values[*index], 0, sizeof d->values[*index]);
  return 1;
}

static int hex4(parser *p, unsigned *code) {
  int i;
  if (p->length - p->position < 4) return invalid(p);
  *code = 0;
  for (i = 0; i < 4; i++) {
    char c = p->text[p->position++];
    unsigned value;
    if (c >= '0' && c <= '9')
      value = (unsigned)(c - '0');
    else if (c >= 'a' && c <= 'f')
      value = (unsigned)(c - 'a' + 10);
    else if (c >= 'A' && c <= 'F')
      value = (unsigned)(c - 'A' + 10);
    else
      return invalid(p);
    *code = *code << 4 | value;
  }
  return 1;
}

/* After the opening quote. What is written is never longer than what has been read. */
static int parse_string(parser *p, uint32_t index) {
  char *start = p->text + p->position, *out = start;
  for (;;) {
    unsigned char c;
    if (p->position >= p->length) return invalid(p);
    c = (unsigned char)p->text[p->position++];
    if (c == '"') break;
    if (c < 0x20) return invalid(p);
    if (c != '\\') {
      *out++ = (char)c;
      continue;
    }
    if (p->position >= p->length) return invalid(p);
    c = (unsigned char)p->text[p->position++];
    switch (c) {
      case '"': case '\\': case '/': *out++ = (char)c; break;
      case 'b': *out++ = '\b'; break;
      case 'f': *out++ = '\f'; break;
      case 'n': *out++ = '\n'; break;
      case 'r': *out++ = '\r'; break;
      case 't': *out++ = '\t'; break;
      case 'u': {
        unsigned code;
        if (!hex4(p, &code)) return 0;
        if (code >= 0xD800 && code < 0xDC00 && p->length - p->position >= 6 &&
            p->text[p->position] == '\\' && p->text[p->position + 1] == 'u') {
          unsigned low;
          p->position += 2;
          if (!hex4(p, &low)) return 0;
          if (low < 0xDC00 || low >= 0xE000) return invalid(p);
          code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        } else if (code >= 0xD800 && code < 0xE000) {
          return invalid(p); /* half of a character */
        }
        if (code < 0x80) {
          *out++ = (char)code;
        } else if (code < 0x800) {
          *out++ = (char)(0xC0 | code >> 6);
          *out++ = (char)(0x80 | (code & 63));
        } else if (code < 0x10000) {
          *out++ = (char)(0xE0 | code >> 12);
          *out++ = (char)(0x80 | (code >> 6 & 63));
          *out++ = (char)(0x80 | (code & 63));
        } else {
          *out++ = (char)(0xF0 | code >> 18);
          *out++ = (char)(0x80 | (code >> 12 & 63));
          *out++ = (char)(0x80 | (code >> 6 & 63));
          *out++ = (char)(0x80 | (code & 63));
        }
        break;
      }
      default: return invalid(p);
    }
  }
  p->document->values[index].type = JSON_STRING;
  p->document->values[index].text = start;
  p->document->values[index].length = (size_t)(out - start);
  return 1;
}

/* mantissa * 10^exponent. Powers up to 10^22 are exact, so that the result is rounded once. */
static double scaled(double mantissa, int exponent) {
  double power = 1;
  int i;
  for (i = 0; i < 22 && i < (exponent < 0 ? -exponent : exponent); i++) power *= 10;
  mantissa = exponent < 0 ? mantissa / power : mantissa * power;
  for (exponent += exponent < 0 ? i : -i; exponent > 0 && mantissa > 0 && mantissa < 1e308; exponent--) mantissa *= 10;
  for (; exponent < 0 && mantissa > 0; exponent++) mantissa /= 10;
  return mantissa;
}

/* Not strtod: that one depends on the locale. */
static int parse_number(parser *p, uint32_t index) {
  json_value *value = &p->document->values[index];
  const int64_t most = (int64_t)1 << 62;
  const size_t start = p->position;
  int negative = 0, real = 0, exponent = 0;
  int64_t integer = 0;
  double mantissa = 0;
  if (at(p, '-')) negative = 1, p->position++;
  if (!digit(p)) return invalid(p);
  if (at(p, '0')) {
    p->position++;
    if (digit(p)) return invalid(p);
  }
  for (; digit(p); p->position++) {
    int d = p->text[p->position] - '0';
    integer = integer > (most - d) / 10 ? most : 10 * integer + d;
    mantissa = 10 * mantissa + d;
  }
  if (at(p, '.')) {
    real = 1;
    p->position++;
    if (!digit(p)) return invalid(p);
    for (; digit(p); p->position++)
      if (exponent > -400) { /* later digits do not matter */
        mantissa = 10 * mantissa + (p->text[p->position] - '0');
        exponent--;
      }
  }
  if (at(p, 'e') || at(p, 'E')) {
    int minus = 0, power = 0;
    real = 1;
    p->position++;
    if (at(p, '-') || at(p, '+')) minus = p->text[p->position++] == '-';
    if (!digit(p)) return invalid(p);
    for (; digit(p); p->position++)
      if (power < 10000) power = 10 * power + (p->text[p->position] - '0');
    exponent += minus ? -power : power;
  }
  if (p->position - start > MAX_NUMBER) return invalid(p);
  mantissa = scaled(mantissa, exponent);
  value->type = real ? JSON_REAL : JSON_INTEGER;
  value->integer = negative ? -integer : integer;
  value->real = negative ? -mantissa : mantissa;
  return 1;
}

static int word(parser *p, uint32_t index, const char *text, json_type type) {
  size_t length = strlen(text);
  if (p->length - p->position < length || memcmp(p->text + p->position, text, length) != 0)
    return invalid(p);
  p->position += length;
  p->document->values[index].type = type;
  return 1;
}

typedef struct {
  const char *text;
  size_t length;
} name;

static int compare_names(const void *a, const void *b) {
  const name *x = a, *y = b;
  size_t least = x->length < y->length ? x->length : y->length;
  int order = least ? memcmp(x->text, y->text, least) : 0;
  return order ? order : (x->length > y->length) - (x->length < y->length);
}

static int names_differ(parser *p, uint32_t object) {
  const json_value *values = p->document->values;
  uint32_t count = values[object].count, i = 0, index;
  int differ = 1;
  name *names;
  if (count < 2) return 1;
  names = malloc(count * sizeof *names);
  if (!names) return fail(p, JSON_NO_MEMORY);
  for (index = values[object].first; i < count; index = values[values[index].next].next, i++) {
    names[i].text = values[index].text;
    names[i].length = values[index].length;
  }
  qsort(names, count, sizeof *names, compare_names);
  for (i = 1; i < count; i++) differ = differ && compare_names(&names[i - 1], &names[i]) != 0;
  free(names);
  return differ || invalid(p);
}

static int parse_value(parser *p, uint32_t *index, int depth);

/* After the opening bracket. */
static int parse_container(parser *p, uint32_t index, int depth, int object) {
  const char close = object ? '}' : ']';
  uint32_t last = 0, count = 0, first = 0;
  if (depth > MAX_DEPTH || !mark(p)) return invalid(p);
  skip_space(p);
  if (at(p, close)) {
    p->position++;
  } else {
    for (;;) {
      uint32_t child;
      if (object) {
        uint32_t key;
        skip_space(p);
        if (!at(p, '"')) return invalid(p);
        p->position++;
        if (!new_value(p, &key) || !parse_string(p, key)) return 0;
        skip_space(p);
        if (!at(p, ':') || !mark(p)) return invalid(p);
        p->position++;
        if (!parse_value(p, &child, depth)) return 0;
        p->document->values[key].next = child;
        if (last) p->document->values[last].next = key;
        if (!first) first = key;
      } else {
        if (!parse_value(p, &child, depth)) return 0;
        if (last) p->document->values[last].next = child;
        if (!first) first = child;
      }
      last = child;
      count++;
      skip_space(p);
      if (at(p, close)) {
        p->position++;
        break;
      }
      if (!at(p, ',') || !mark(p)) return invalid(p);
      p->position++;
    }
  }
  p->document->values[index].type = object ? JSON_OBJECT : JSON_ARRAY;
  p->document->values[index].first = first;
  p->document->values[index].count = count;
  return !object || names_differ(p, index);
}

static int parse_value(parser *p, uint32_t *index, int depth) {
  skip_space(p);
  if (p->position >= p->length) return invalid(p);
  if (!new_value(p, index)) return 0;
  switch (p->text[p->position]) {
    case '{': p->position++; return parse_container(p, *index, depth + 1, 1);
    case '[': p->position++; return parse_container(p, *index, depth + 1, 0);
    case '"': p->position++; return parse_string(p, *index);
    case 'n': return word(p, *index, "null", JSON_NULL);
    case 't': return word(p, *index, "true", JSON_TRUE);
    case 'f': return word(p, *index, "false", JSON_FALSE);
    default: return parse_number(p, *index);
  }
}

static int valid_utf8(const char *text, size_t length) {
  const unsigned char *s = (const unsigned char *)text;
  size_t i = 0;
  while (i < length) {
    unsigned char c = s[i];
    size_t more = c < 0x80 ? 0 : c >= 0xC2 && c < 0xE0 ? 1 : (c & 0xF0) == 0xE0 ? 2 : c >= 0xF0 && c < 0xF5 ? 3 : 4;
    size_t k;
    if (more == 4 || length - i <= more) return 0;
    for (k = 1; k <= more; k++)
      if ((s[i + k] & 0xC0) != 0x80) return 0;
    /* Forms that are too long, surrogates, and beyond the last code point. */
    if ((c == 0xE0 && s[i + 1] < 0xA0) || (c == 0xED && s[i + 1] >= 0xA0) || (c == 0xF0 && s[i + 1] < 0x90) ||
        (c == 0xF4 && s[i + 1] >= 0x90))
      return 0;
    i += more + 1;
  }
  return 1;
}

json_result binwrn_json_parse(json_document *document, char *text, size_t length) {
  parser p;
  uint32_t root;
  p.document = document;
  p.text = text;
  p.length = length;
  p.position = 0;
  p.marks = 0;
  p.result = JSON_OK;
  if (!valid_utf8(text, length)) return JSON_INVALID;
  if (!parse_value(&p, &root, 0)) return p.result;
  skip_space(&p);
  return p.position == p.length ? JSON_OK : JSON_INVALID;
}

void binwrn_json_free(json_document *document) {
  free(document->values);
  memset(document, 0, sizeof *document);
}

const json_value *binwrn_json_first(const json_document *document, const json_value *value) {
  return value->first ? &document->values[value->first] : NULL;
}

const json_value *binwrn_json_next(const json_document *document, const json_value *value) {
  return value->next ? &document->values[value->next] : NULL;
}

int binwrn_json_is_string(const json_value *value, const char *text) {
  return value && value->type == JSON_STRING && value->length == strlen(text) &&
         memcmp(value->text, text, value->length) == 0;
}

const json_value *binwrn_json_member(const json_document *document, const json_value *object, const char *name) {
  const json_value *key;
  if (!object || object->type != JSON_OBJECT) return NULL;
  for (key = binwrn_json_first(document, object); key; key = binwrn_json_next(document, binwrn_json_next(document, key)))
    if (binwrn_json_is_string(key, name)) return binwrn_json_next(document, key);
  return NULL;
}
