/* The fields of the metadata that say what a model is for: no computation needs them, but each has its type. */
#include <string.h>

#include "loader.h"

/* A string without control characters, which could make a terminal do something. */
static int is_text(const json_value *v) {
  size_t i;
  if (v->type != JSON_STRING) return 0;
  for (i = 0; i < v->length; i++) {
    const unsigned char c = (unsigned char)v->text[i];
    if (c < 0x20 || c == 0x7f) return 0;
    if (c == 0xc2 && (unsigned char)v->text[i + 1] < 0xa0) return 0; /* U+0080 to U+009F */
  }
  return 1;
}

static int absent(const json_value *v) { return !v || v->type == JSON_NULL; }

binwrn_error binwrn_check_description(loader *l) {
  static const char *const texts[] = {"dataset", "license", "config_sha256"};
  static const char *const objects[] = {"network", "test"};
  const json_document *d = &l->metadata;
  const json_value *input = binwrn_json_member(d, l->root, "input"), *v, *names;
  size_t i;
  DEMAND(input && input->type == JSON_OBJECT, "input is not an object");
  v = binwrn_json_member(d, input, "resize");
  DEMAND(!v || binwrn_json_is_string(v, "bilinear") || binwrn_json_is_string(v, "center_crop"),
         "input resize is none of bilinear, center_crop");
  v = binwrn_json_member(d, input, "channels");
  DEMAND(!v || binwrn_json_is_string(v, "grey") || binwrn_json_is_string(v, "RGB") ||
             binwrn_json_is_string(v, "other"),
         "input channels is none of grey, RGB, other");
  v = binwrn_json_member(d, l->root, "num_classes");
  DEMAND(binwrn_is_int(v, 1, MAX_CHANNELS), "num_classes is no number of classes");
  l->classes = (int)v->integer;
  names = binwrn_json_member(d, l->root, "class_names");
  DEMAND(names && names->type == JSON_ARRAY && (names->count == 0 || (int64_t)names->count == l->classes),
         "class_names are not %d strings, nor an empty list", l->classes);
  for (v = binwrn_json_first(d, names); v; v = binwrn_json_next(d, v))
    DEMAND(is_text(v), "class_names are not strings without control characters");
  for (i = 0; i < sizeof texts / sizeof *texts; i++) {
    v = binwrn_json_member(d, l->root, texts[i]);
    DEMAND(absent(v) || is_text(v), "%s is no string without control characters", texts[i]);
  }
  for (i = 0; i < sizeof objects / sizeof *objects; i++) {
    v = binwrn_json_member(d, l->root, objects[i]);
    DEMAND(absent(v) || v->type == JSON_OBJECT, "%s is not an object", objects[i]);
  }
  v = binwrn_json_member(d, l->root, "source");
  DEMAND(absent(v) || v->type == JSON_OBJECT || is_text(v), "source is no object");
  return BINWRN_OK;
}
