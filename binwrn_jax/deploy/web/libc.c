/* Small versions of functions of the C library, whose own are larger than the whole runtime. */
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The conversions that the runtime's messages have: %d and %s. */
int vsnprintf(char *restrict out, size_t size, const char *restrict format, va_list arguments) {
  size_t length = 0;
  for (; *format; format++) {
    char digits[12];
    const char *text = format;
    size_t count = 1;
    if (*format == '%' && format[1] == 's') {
      text = va_arg(arguments, const char *);
      count = strlen(text);
      format++;
    } else if (*format == '%' && format[1] == 'd') {
      const int number = va_arg(arguments, int);
      unsigned rest = number < 0 ? 0u - (unsigned)number : (unsigned)number;
      char *begin = digits + sizeof digits;
      do *--begin = (char)('0' + rest % 10);
      while (rest /= 10);
      if (number < 0) *--begin = '-';
      text = begin;
      count = (size_t)(digits + sizeof digits - begin);
      format++;
    }
    for (; count; count--, length++, text++)
      if (length + 1 < size) out[length] = *text;
  }
  if (size) out[length < size ? length : size - 1] = 0;
  return (int)length;
}

static void swap(char *a, char *b, size_t size) {
  for (; size; size--, a++, b++) {
    const char c = *a;
    *a = *b, *b = c;
  }
}

/* Heap sort. */
void qsort(void *base, size_t count, size_t size, int (*compare)(const void *, const void *)) {
  char *items = base;
  size_t start = count / 2, end = count;
  while (end > 1) {
    size_t root, child;
    if (start)
      start--;
    else
      swap(items, items + --end * size, size);
    for (root = start; (child = 2 * root + 1) < end; root = child) {
      if (child + 1 < end && compare(items + child * size, items + (child + 1) * size) < 0) child++;
      if (compare(items + root * size, items + child * size) >= 0) break;
      swap(items + root * size, items + child * size, size);
    }
  }
}
