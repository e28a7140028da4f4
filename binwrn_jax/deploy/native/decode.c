/* Coded kernels decoded while a model is loaded, by as many threads as it will run with: the streams of a kernel are
 * independent of each other. */
#include <stdlib.h>
#include <string.h>

#include "entropy.h"
#include "loader.h"

/* Kernels at a time, which bounds the memory of their tables; and streams that a thread takes at a time. */
#define KERNELS 32
#define STREAMS 4

typedef struct {
  struct pool *pool;
  node *nodes[KERNELS];
  entropy_kernel kernels[KERNELS];
  const char *wrong[KERNELS]; /* atomic: what is wrong with a kernel; NULL: nothing so far */
  int ends[KERNELS];          /* the items of this kernel and of those before it */
  int count;
  int items; /* atomic: a thread that comes too late for a batch may still look */
} batch;

static void decode_item(batch *b, int item) {
  const char *wrong;
  uint32_t first, last;
  int i = 0;
  while (item >= b->ends[i]) i++;
  first = (uint32_t)(item - (i ? b->ends[i - 1] : 0)) * STREAMS;
  last = first + STREAMS < b->kernels[i].streams ? first + STREAMS : b->kernels[i].streams;
  wrong = binwrn_entropy_decode(&b->kernels[i], first, last, b->nodes[i]->coded->decoded);
  if (wrong) __atomic_store_n(&b->wrong[i], wrong, __ATOMIC_RELAXED);
}

/* The work of a thread: one step. */
static void work(void *context, const job *job, int thread) {
  batch *b = context;
  (void)thread;
  for (;;) {
    int item;
    const int items = __atomic_load_n(&b->items, __ATOMIC_RELAXED);
    const uint64_t step = binwrn_pool_step(b->pool, &item);
    if (step != job->first_step) return;
    if (item >= items) {
      binwrn_pool_wait(b->pool, step);
    } else if (binwrn_pool_take(b->pool, step, item)) {
      decode_item(b, item);
      binwrn_pool_done(b->pool, step, items);
    }
  }
}

/* Reads the tables of the next coded kernels, from node `at` on; returns the node after them, or -1 and an error. */
static int fill(loader *l, batch *b, int at, binwrn_error *error) {
  b->count = 0;
  for (; at < l->node_count && b->count < KERNELS; at++) {
    node *n = &l->nodes[at];
    entropy_kernel *kernel = &b->kernels[b->count];
    const uint32_t outputs = (uint32_t)l->values[n->out].shape.channels;
    const char *wrong;
    if (!n->coded) continue;
    wrong = binwrn_entropy_open(kernel, l->data + n->coded->begin, (size_t)(n->coded->end - n->coded->begin), outputs,
                                (uint32_t)(l->values[n->in[0]].shape.channels / n->groups));
    b->nodes[b->count] = n;
    b->wrong[b->count] = wrong;
    if (!wrong) {
      n->weights = n->coded->decoded = malloc(outputs * n->row_bytes);
      if (!n->weights) {
        *error = binwrn_no_memory(l);
        return -1;
      }
    }
    b->ends[b->count] = (b->count ? b->ends[b->count - 1] : 0) +
                        (wrong ? 0 : (int)((kernel->streams + STREAMS - 1) / STREAMS));
    b->count++;
  }
  return at;
}

static binwrn_error decode_all(loader *l, batch *b) {
  binwrn_error error = BINWRN_OK;
  int at = 0, exceeded = 0, i;
  while (at < l->node_count) {
    at = fill(l, b, at, &error);
    if (at < 0) return error;
    __atomic_store_n(&b->items, b->count ? b->ends[b->count - 1] : 0, __ATOMIC_RELAXED);
    if (b->items) binwrn_pool_run(b->pool, NULL, NULL, 1, &exceeded);
    for (i = 0; i < b->count; i++) {
      const tensor *t = b->nodes[i]->coded;
      DEMAND(!b->wrong[i], "coded kernel '%s': %s", binwrn_shorten(t->name, t->length).text, b->wrong[i]);
    }
  }
  return BINWRN_OK;
}

binwrn_error binwrn_decode_kernels(loader *l, int threads) {
  binwrn_error error;
  batch *b;
  int i = 0;
  while (i < l->node_count && !l->nodes[i].coded) i++;
  if (i == l->node_count) return BINWRN_OK;
  b = calloc(1, sizeof *b);
  if (!b) return binwrn_no_memory(l);
  b->pool = binwrn_pool_new(work, b, threads);
  error = b->pool ? decode_all(l, b)
                  : binwrn_complain(l->message, BINWRN_ERROR_THREADS, "the system does not start %d threads", threads);
  binwrn_pool_free(b->pool);
  free(b);
  return error;
}
