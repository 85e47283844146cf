/* pyds4.h — the C ABI of the pyds4 engine.
 *
 * Handles are opaque; every call that can fail returns a status and leaves a message for this thread
 * (pyds4_last_error). Option structs begin with their own size, so that they can grow: set
 * `struct_size` to sizeof. No call keeps a pointer that it was given. Strings are UTF-8.
 *
 * Threads: any thread may call anything. One engine computes one thing at a time, calls wait for each
 * other; pyds4_session_cancel and pyds4_session_position never wait. A handle must not be used
 * during or after its free.
 *
 * The part between the two markers is plain C declarations, as cffi reads them. */
#ifndef PYDS4_H
#define PYDS4_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* BEGIN DECLARATIONS */

typedef enum {
    PYDS4_OK = 0,
    PYDS4_INVALID_ARGUMENT = 1,   /* a NULL, a size or an option that no call allows */
    PYDS4_FILE_NOT_FOUND = 2,
    PYDS4_BAD_FILE = 3,           /* not a GGUF file, or a damaged one */
    PYDS4_UNSUPPORTED_MODEL = 4,  /* a good file that this engine cannot run */
    PYDS4_BACKEND_UNAVAILABLE = 5,
    PYDS4_OUT_OF_MEMORY = 6,
    PYDS4_TOKEN_OUT_OF_RANGE = 7, /* not an id of the vocabulary */
    PYDS4_CONTEXT_FULL = 8,       /* more tokens than the session's context */
    PYDS4_CANCELLED = 9,
    PYDS4_NO_LOGITS = 10,         /* nothing was evaluated since the session was made or rewound */
    PYDS4_STORE_FAILED = 11,      /* the directory of kept prefixes refused; the message says how */
    PYDS4_NO_SUCH_KEY = 12        /* no prefix of that name is kept */
} pyds4_status;

typedef struct pyds4_engine pyds4_engine;
typedef struct pyds4_session pyds4_session;
typedef struct pyds4_file pyds4_file;
typedef struct pyds4_kv pyds4_kv;

/* The engine's version, such as "0.1.0"; a constant. */
const char *pyds4_version(void);
/* Of the last call on this thread that failed; valid until the next one. Never NULL. */
const char *pyds4_last_error(void);
/* The instruction set the CPU kernels use: "plain", "avx2", "avx512", "neon"; a constant. */
const char *pyds4_instruction_set(void);

/* ---------------------------------------------------------------- files */

/* One metadata entry. `data` holds, as in the file: a scalar's bytes; a string's bytes; an array's
 * elements, strings among them each behind its u64 length. Valid as long as the file is open. */
typedef struct {
    const char *key;
    int32_t type;         /* GGUF value type: 0 u8, 1 i8, 2 u16, 3 i16, 4 u32, 5 i32, 6 f32, 7 bool, */
    int32_t element_type; /* 8 string, 9 array, 10 u64, 11 i64, 12 f64; elements of an array, else -1 */
    uint64_t count;       /* elements of an array, else 1 */
    const void *data;
    uint64_t byte_count;
} pyds4_metadata;

typedef struct {
    const char *name;
    const char *type_name;  /* such as "q8_0" */
    int32_t type;           /* ggml type id */
    int32_t dimension_count;
    uint64_t shape[4];      /* ggml order: columns first */
    uint64_t byte_count;
    uint64_t offset;        /* from the start of its file */
    int32_t file_index;     /* which part of a split model */
    int32_t computable;     /* 1 when the kernels read this type */
} pyds4_tensor;

/* Reads and checks the header of a GGUF file (all parts of a split one); weights are not touched. */
pyds4_status pyds4_file_open(const char *path, pyds4_file **file);
void pyds4_file_free(pyds4_file *file);
uint64_t pyds4_file_byte_count(const pyds4_file *file);
size_t pyds4_file_part_count(const pyds4_file *file);
const char *pyds4_file_part_path(const pyds4_file *file, size_t index);
size_t pyds4_file_metadata_count(const pyds4_file *file);
pyds4_status pyds4_file_metadata(const pyds4_file *file, size_t index, pyds4_metadata *out);
size_t pyds4_file_tensor_count(const pyds4_file *file);
pyds4_status pyds4_file_tensor(const pyds4_file *file, size_t index, pyds4_tensor *out);

/* ---------------------------------------------------------------- engine */

typedef struct {
    size_t struct_size;
    const char *backend; /* "auto" (or NULL), "cpu", "metal", "cuda" */
    int32_t threads;     /* of the CPU backend; 0: one a processor */
    int32_t roundings;   /* 1: the model's activation roundings and row formats; 0: f32 */
} pyds4_engine_options;

typedef struct {
    size_t struct_size;
    int32_t layer_count, hidden_size, vocabulary_size, context_length;
    int32_t head_count, head_dim, rope_dim, query_rank, window;
    int32_t indexer_head_count, indexer_dim, indexer_top_k;
    int32_t expert_count, expert_used_count, expert_size, hash_layer_count;
    int32_t threads, roundings;
} pyds4_config;

/* Maps a model and checks every tensor. `options` may be NULL. */
pyds4_status pyds4_engine_open(const char *path, const pyds4_engine_options *options,
                               pyds4_engine **engine);
/* Sessions keep what they need alive: the order of frees does not matter. */
void pyds4_engine_free(pyds4_engine *engine);
pyds4_status pyds4_engine_config(const pyds4_engine *engine, pyds4_config *config);
/* "cpu", "metal" or "cuda". */
const char *pyds4_engine_backend(const pyds4_engine *engine);
/* The opened file; freed with the engine, not by the caller. */
const pyds4_file *pyds4_engine_file(const pyds4_engine *engine);

typedef struct {
    uint64_t weights;   /* the file's tensors, mapped */
    uint64_t kv;        /* attention memory of one session with that many tokens */
    uint64_t buffers;   /* activations of the largest batch, about */
} pyds4_memory;

/* What `tokens` tokens of context need, in bytes, for a model file that need not be loaded. */
pyds4_status pyds4_file_memory(const pyds4_file *file, uint64_t tokens, int32_t roundings,
                               pyds4_memory *memory);

/* ---------------------------------------------------------------- sessions */

/* One timeline: tokens, attention memory, the logits after the last token. `context`: how many tokens
 * it may hold, 0 for the model's own limit; memory grows with use, not with this. */
pyds4_status pyds4_session_create(pyds4_engine *engine, uint64_t context, pyds4_session **session);
void pyds4_session_free(pyds4_session *session);
/* A second session with the same past; compressed memory is shared until one of them writes. */
pyds4_status pyds4_session_fork(pyds4_session *session, pyds4_session **twin);

/* Tokens taken in. */
uint64_t pyds4_session_position(const pyds4_session *session);
uint64_t pyds4_session_context(const pyds4_session *session);
/* Bytes of attention memory in use; what forks share is counted in each. */
uint64_t pyds4_session_byte_count(const pyds4_session *session);
/* The first `capacity` of its tokens. */
pyds4_status pyds4_session_tokens(const pyds4_session *session, int32_t *tokens, size_t capacity);
/* [vocabulary] floats: the scores of the token after the last one. */
pyds4_status pyds4_session_logits(const pyds4_session *session, float *logits, size_t count);

/* Goes back to the longest prefix of `tokens` that it can go on from, at most n_tokens - 1 so that
 * something is left to evaluate; `*kept` receives its length. Nothing is evaluated. */
pyds4_status pyds4_session_rewind(pyds4_session *session, const int32_t *tokens, size_t n_tokens,
                                  size_t *kept);
/* The same, but keeps all n_tokens where the logits behind them are known: then nothing is left to do. */
pyds4_status pyds4_session_recall(pyds4_session *session, const int32_t *tokens, size_t n_tokens,
                                  size_t *kept);
/* Brings the session to the end of `tokens`; `*reused` receives how many of them were not evaluated
 * again. PYDS4_CONTEXT_FULL and PYDS4_TOKEN_OUT_OF_RANGE leave it unchanged, PYDS4_CANCELLED at the
 * end of the last finished chunk. */
pyds4_status pyds4_session_prefill(pyds4_session *session, const int32_t *tokens, size_t n_tokens,
                                   size_t *reused);
/* One more token. */
pyds4_status pyds4_session_decode(pyds4_session *session, int32_t token);
/* Stops what the session is doing, or the next thing it would do, with PYDS4_CANCELLED. */
void pyds4_session_cancel(pyds4_session *session);

/* ---------------------------------------------------------------- kept prefixes */

/* What all sessions of an engine remember together. Off until given a budget or a directory; then
 * pyds4_session_rewind and _prefill go on from the longest prefix that any session ever took in. */

typedef struct {
    uint64_t budget_bytes, byte_count, entry_count;
    uint64_t hits, misses, evicted;
    uint64_t reused_tokens;  /* not evaluated again thanks to other sessions */
} pyds4_prefixes;

/* Bytes that prefixes may take in memory beside open sessions; 0 keeps none. */
void pyds4_engine_prefix_budget(pyds4_engine *engine, uint64_t budget_bytes);
void pyds4_engine_prefixes(const pyds4_engine *engine, pyds4_prefixes *out);
void pyds4_engine_prefixes_clear(pyds4_engine *engine);

typedef struct {
    size_t struct_size;
    const char *directory;       /* made when missing, for its owner alone */
    uint64_t budget_bytes;       /* of the whole directory, all models together */
    uint64_t write_budget_bytes; /* in 24 hours; 0: no limit */
    uint64_t reserve_bytes;      /* of the file system, left to others */
    uint64_t fewest_tokens;      /* fewer new ones since the last save are not written */
} pyds4_kv_options;

/* Keeps prefixes in a directory from now on: ends of prompts by themselves, others when asked. NULL
 * options: no more. Written by a thread of its own, never waited for. */
pyds4_status pyds4_engine_kv_attach(pyds4_engine *engine, const pyds4_kv_options *options);
/* Waits until everything that is to be kept is on disk. */
void pyds4_engine_kv_flush(pyds4_engine *engine);
/* Names the model's content, such as a SHA-256 of its files that was verified: what is kept then belongs
 * to that, instead of to a sample of the weights. PYDS4_INVALID_ARGUMENT when something was kept. */
pyds4_status pyds4_engine_bind(pyds4_engine *engine, const char *content);
/* 20 bytes: of the model's content, its row formats and their layout. */
void pyds4_engine_identity(const pyds4_engine *engine, uint8_t *identity);

/* Keeps where the session stands now, in memory and on disk: for the end of a turn. */
pyds4_status pyds4_session_save(pyds4_session *session);

typedef struct {
    uint64_t reused;   /* tokens of the prompt that were there */
    uint64_t known;    /* tokens it shares with some known timeline; beyond `reused` no place was kept */
    uint64_t byte_count; /* read from disk */
    int32_t source;    /* who had them: 0 nobody, 1 the session, 2 another in memory, 3 the disk */
    int32_t expected;  /* the token that timeline has at `known`; -1: not known, or it ends there */
} pyds4_resume;

/* What the last rewind or prefill found. */
pyds4_status pyds4_session_resume(const pyds4_session *session, pyds4_resume *out);

/* A directory of prefixes, to look after: of one engine (freed with pyds4_kv_free as well), or of all
 * models in it, for which no engine is needed. */
pyds4_status pyds4_engine_kv(pyds4_engine *engine, pyds4_kv **kv);
pyds4_status pyds4_kv_open(const char *directory, uint64_t budget_bytes, pyds4_kv **kv);
void pyds4_kv_free(pyds4_kv *kv);

typedef struct {
    char key[41];            /* hexadecimal, as the file's name */
    char identity[41];       /* of the model */
    uint64_t position;       /* tokens that need not be evaluated again */
    uint64_t byte_count;     /* of its state alone */
    uint64_t chain_bytes;    /* with all rows it stands on, which it may share */
    uint64_t made_s, used_s; /* seconds since 1970 */
    int32_t pinned, anchor;  /* anchor: a place where timelines part */
} pyds4_kv_entry;

/* Every place to go on from, latest use first: writes up to `capacity`, `*count` receives how many there are. */
pyds4_status pyds4_kv_list(pyds4_kv *kv, pyds4_kv_entry *entries, size_t capacity, size_t *count);
/* The ids before one: writes up to `capacity`, `*count` receives how many there are. */
pyds4_status pyds4_kv_tokens(pyds4_kv *kv, const char *key, int32_t *tokens, size_t capacity, size_t *count);
/* Keeps one, with all it stands on, from eviction (1), or no longer (0). */
pyds4_status pyds4_kv_pin(pyds4_kv *kv, const char *key, int32_t pinned);
/* Removes one and the rows that nothing else stands on; NULL: all that are not pinned. */
pyds4_status pyds4_kv_delete(pyds4_kv *kv, const char *key, uint64_t *freed_bytes);

typedef struct {
    uint64_t byte_count, files, states, blocks;
    /* Of this process since the store was opened. */
    uint64_t hits, misses, bytes_read, bytes_written, states_written;
    uint64_t over_budget, write_errors; /* not written: no budget or room; refused by the system */
    uint64_t evicted, damaged_removed, leftovers_removed;
    uint64_t waiting, given_up;         /* saves under way; given up because the disk was too slow */
    int64_t write_budget_left;          /* -1: no limit */
    char last_error[256];
} pyds4_kv_stats;
void pyds4_kv_statistics(pyds4_kv *kv, pyds4_kv_stats *out);

/* ---------------------------------------------------------------- steps */

typedef struct {
    size_t struct_size;
    float temperature; /* 0: the most likely token */
    float top_p;       /* 1: off */
    float min_p;       /* 0: off */
    int32_t top_k;     /* 0: off */
} pyds4_sampling;

/* Work of one session in a step. */
typedef struct {
    size_t struct_size;
    pyds4_session *session;
    const int32_t *tokens; /* evaluated behind what the session holds */
    size_t n_tokens;
    const pyds4_sampling *sampling; /* NULL: choose no token */
    double random;                  /* uniform in [0, 1), for the choice */
    float *all_logits;              /* NULL, or room for [n_tokens, vocabulary] */
    int32_t token;                  /* out: the token chosen, or -1 */
    int32_t status;                 /* out: of this item; the others are not affected */
    char message[256];              /* out: why it failed, cut to fit */
} pyds4_step_item;

/* Evaluates all items together: each weight is read once for all of them. No session may appear
 * twice. The status returned is that of the call; each item has its own. */
pyds4_status pyds4_engine_step(pyds4_engine *engine, pyds4_step_item *items, size_t n_items);

/* Chooses a token from [count] logits: top_k, then softmax at temperature, top_p, min_p. */
pyds4_status pyds4_sample(const float *logits, size_t count, const pyds4_sampling *sampling,
                          double random, int32_t *token);

/* ---------------------------------------------------------------- importance */

/* What one tensor's inputs were like; for quantisation weighted by importance. */
typedef struct {
    size_t entry_count;   /* tensors recorded so far */
    char name[128];
    uint64_t columns;
    uint64_t matrices;    /* experts, or groups of the output projection; else 1 */
    const double *sums;   /* [matrices, columns]: squares of all inputs; valid, and growing, until … */
    const double *counts; /* [matrices]: inputs seen; … recording is begun anew or ended */
} pyds4_importance;

/* 1: begins to record, from nothing; 0: stops and forgets. On the CPU backend only. */
pyds4_status pyds4_engine_record_importance(pyds4_engine *engine, int32_t on);
/* PYDS4_INVALID_ARGUMENT behind the last one. */
pyds4_status pyds4_engine_importance(pyds4_engine *engine, size_t index, pyds4_importance *out);

/* END DECLARATIONS */

#ifdef __cplusplus
}
#endif
#endif
