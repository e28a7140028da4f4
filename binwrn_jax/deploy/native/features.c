/* The version of a file, and the features of version 2 that it requires. */
#include <string.h>

#include "loader.h"

static const struct {
  const char *name;
  unsigned feature;
} FEATURES[] = {
    {"clip", FEATURE_CLIP},
    {"concat", FEATURE_CONCAT},
    {"dilation", FEATURE_DILATION},
    {"elementwise", FEATURE_ELEMENTWISE},
    {"entropy", FEATURE_ENTROPY},
    {"float_kernels", FEATURE_FLOAT_KERNELS},
    {"global_pool", FEATURE_GLOBAL_POOL},
    {"groups", FEATURE_GROUPS},
    {"int8", FEATURE_INT8},
    {"pad", FEATURE_PAD},
    {"product", FEATURE_PRODUCT},
    {"resize", FEATURE_RESIZE},
    {"temperature", FEATURE_TEMPERATURE},
};

static int is_name(const json_value *v) {
  size_t i;
  if (v->type != JSON_STRING || v->length < 1 || v->length > 32) return 0;
  for (i = 0; i < v->length; i++) {
    const char c = v->text[i];
    if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_')) return 0;
  }
  return 1;
}

binwrn_error binwrn_check_version(loader *l) {
  const json_document *d = &l->metadata;
  const json_value *version = binwrn_json_member(d, l->root, "version"),
                   *requires = binwrn_json_member(d, l->root, "requires"), *name, *next;
  DEMAND(binwrn_is_int(version, 1, INT32_MAX), "its version is no version number");
  l->version = (int)version->integer;
  if (l->version > 2)
    return binwrn_complain(l->message, BINWRN_ERROR_VERSION,
                           "version %d, but this program reads versions 1 and 2: update it", l->version);
  if (l->version == 1) return BINWRN_OK;
  DEMAND(requires && requires->type == JSON_ARRAY && requires->count >= 1 && requires->count <= 32,
         "requires is no ascending list of features");
  for (name = binwrn_json_first(d, requires); name; name = next) {
    next = binwrn_json_next(d, name);
    DEMAND(is_name(name) && (!next || (next->type == JSON_STRING &&
                                       binwrn_compare_text(name->text, name->length, next->text, next->length) < 0)),
           "requires is no ascending list of features");
  }
  for (name = binwrn_json_first(d, requires); name; name = binwrn_json_next(d, name)) {
    size_t i;
    for (i = 0; i < sizeof FEATURES / sizeof *FEATURES; i++)
      if (binwrn_json_is_string(name, FEATURES[i].name)) break;
    if (i == sizeof FEATURES / sizeof *FEATURES)
      return binwrn_complain(l->message, BINWRN_ERROR_VERSION,
                             "this file needs '%s', which this program does not read: update it",
                             binwrn_shorten(name->text, name->length).text);
    l->required |= FEATURES[i].feature;
  }
  return BINWRN_OK;
}

binwrn_error binwrn_check_features(loader *l) {
  const json_value *temperature = binwrn_json_member(&l->metadata, l->root, "temperature");
  size_t i;
  if (l->version == 1) return BINWRN_OK; /* operations and fields of version 2 are refused there */
  if (temperature) l->used |= FEATURE_TEMPERATURE;
  for (i = 0; i < sizeof FEATURES / sizeof *FEATURES; i++)
    DEMAND(((l->used ^ l->required) & FEATURES[i].feature) == 0, "it requires '%s' and does not use it, or the reverse",
           FEATURES[i].name);
  DEMAND(!temperature || (binwrn_is_number(temperature, 0x1p10) && temperature->real >= 0x1p-10),
         "its temperature is no number from 2^-10 to 2^10");
  return BINWRN_OK;
}
