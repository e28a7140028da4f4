/* Decodes many coded kernels with the C decoder, each in memory of exactly its size, for the sanitizers to watch.
 *
 *     decode_entropy < cases > results
 *
 * A case is three 32-bit numbers of the machine, C_out, channels and bytes, and the bytes. Its result is a byte: 1 and
 * the bits, or 0 and a line that says what is wrong. */
#include <stdio.h>
#include <stdlib.h>

#include "entropy.h"

int main(void) {
  uint32_t head[3];
  entropy_kernel kernel;
  while (fread(head, sizeof head, 1, stdin) == 1) {
    const size_t size = (size_t)head[0] * ((9 * (size_t)head[1] + 7) / 8);
    unsigned char *words = malloc(head[2] ? head[2] : 1), *bits = malloc(size);
    const char *wrong;
    if (!words || !bits || fread(words, 1, head[2], stdin) != head[2]) return 1;
    wrong = binwrn_entropy_open(&kernel, words, head[2], head[0], head[1]);
    /* In two parts, as by two threads. */
    if (!wrong) wrong = binwrn_entropy_decode(&kernel, kernel.streams / 2, kernel.streams, bits);
    if (!wrong) wrong = binwrn_entropy_decode(&kernel, 0, kernel.streams / 2, bits);
    putchar(wrong ? 0 : 1);
    if (wrong) {
      puts(wrong);
    } else {
      fwrite(bits, 1, size, stdout);
    }
    free(words);
    free(bits);
  }
  return 0;
}
