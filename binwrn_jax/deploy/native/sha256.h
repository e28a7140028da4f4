/* SHA-256 (FIPS 180-4). */
#ifndef BINWRN_SHA256_H
#define BINWRN_SHA256_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
  uint32_t state[8];
  uint64_t length; /* bytes so far */
  unsigned char block[64];
} sha256;

void binwrn_sha256_start(sha256 *hash);
void binwrn_sha256_update(sha256 *hash, const unsigned char *data, size_t size);
/* 64 hexadecimal digits and a final 0. */
void binwrn_sha256_hex(sha256 *hash, char hex[65]);

#endif
