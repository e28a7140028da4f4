/* An Arm MPS2 board (QEMU's mps2-an386, Cortex-M4 with FPU) that runs a generated model on the images built
 * into it, and prints the logits by semihosting: one line per image, each number as the hexadecimal digits of
 * its float32. */
#include <stdint.h>

#include "images.h" /* IMAGES, images[], and the model's own header */

extern uint32_t _data_load, _data, _data_end, _bss, _bss_end, _stack;

static void semihosting(uint32_t operation, const void *argument) {
  register uint32_t r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
}

static void run(void) {
  int n, i, digit;
  for (n = 0; n < IMAGES; n++) {
    float logits[CLASSES];
    char line[9 * CLASSES + 2], *at = line;
    predict(images[n], logits);
    for (i = 0; i < CLASSES; i++) {
      union {
        float value;
        uint32_t bits;
      } number;
      number.value = logits[i];
      for (digit = 7; digit >= 0; digit--) *at++ = "0123456789abcdef"[number.bits >> (4 * digit) & 15];
      *at++ = ' ';
    }
    *at++ = '\n';
    *at = 0;
    semihosting(4, line); /* SYS_WRITE0 */
  }
}

void reset(void);
void reset(void) {
  uint32_t *from = &_data_load, *to;
  *(volatile uint32_t *)0xE000ED88 |= 0xF << 20; /* CPACR: the FPU */
  __asm__ volatile("dsb\n isb");
  for (to = &_data; to < &_data_end;) *to++ = *from++;
  for (to = &_bss; to < &_bss_end;) *to++ = 0;
  run();
  semihosting(0x18, (const void *)0x20026); /* SYS_EXIT, ADP_Stopped_ApplicationExit */
  for (;;) {}
}

static void fault(void) {
  semihosting(4, "fault\n");
  semihosting(0x18, (const void *)0x20023); /* ADP_Stopped_RunTimeErrorUnknown */
  for (;;) {}
}

__attribute__((section(".vectors"), used)) static const void *const vectors[] = {
    &_stack, (void *)reset, (void *)fault, (void *)fault, (void *)fault, (void *)fault, (void *)fault,
};
