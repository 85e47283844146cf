/* abi.c — pyds4.h as a C program sees it. Run with a model file; prints "ok" or the line that failed.
 *
 * What every caller relies on: statuses and messages, per thread; struct sizes that are checked;
 * arguments that are refused, not dereferenced; frees in any order. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pyds4.h"

#define CHECK(what)                                                                     \
    do {                                                                                \
        if (!(what)) {                                                                  \
            printf("%s:%d: %s (%s)\n", __FILE__, __LINE__, #what, pyds4_last_error());  \
            exit(1);                                                                    \
        }                                                                               \
    } while (0)

/* The call fails with `status` and says `text`. */
#define REFUSED(status, text, call)                                                     \
    do {                                                                                \
        CHECK((call) == (status));                                                      \
        CHECK(strstr(pyds4_last_error(), text) != NULL);                                \
    } while (0)

enum { PROMPT = 40 };
static int32_t prompt[PROMPT];

static void refuses_what_is_not_there(const char *path) {
    pyds4_engine *engine = NULL;
    pyds4_file *file = NULL;
    REFUSED(PYDS4_INVALID_ARGUMENT, "path", pyds4_engine_open(NULL, NULL, &engine));
    REFUSED(PYDS4_INVALID_ARGUMENT, "engine", pyds4_engine_open(path, NULL, NULL));
    REFUSED(PYDS4_FILE_NOT_FOUND, "/no/such", pyds4_engine_open("/no/such.gguf", NULL, &engine));
    REFUSED(PYDS4_BAD_FILE, "/dev/null", pyds4_engine_open("/dev/null", NULL, &engine));
    CHECK(engine == NULL);
    REFUSED(PYDS4_INVALID_ARGUMENT, "path", pyds4_file_open(NULL, &file));
    REFUSED(PYDS4_INVALID_ARGUMENT, "file", pyds4_file_open(path, NULL));
    CHECK(file == NULL);

    pyds4_engine_options options = {sizeof options, "cpu", 2, 1};
    options.struct_size = 3;
    REFUSED(PYDS4_INVALID_ARGUMENT, "struct_size", pyds4_engine_open(path, &options, &engine));
    options.struct_size = sizeof options;
    options.backend = "tpu";
    REFUSED(PYDS4_INVALID_ARGUMENT, "'tpu'", pyds4_engine_open(path, &options, &engine));
    options.backend = "cpu";
    options.threads = -1;
    REFUSED(PYDS4_INVALID_ARGUMENT, "threads", pyds4_engine_open(path, &options, &engine));

    pyds4_session *session = NULL;
    size_t count;
    float logit;
    int32_t token;
    REFUSED(PYDS4_INVALID_ARGUMENT, "engine", pyds4_session_create(NULL, 0, &session));
    REFUSED(PYDS4_INVALID_ARGUMENT, "session", pyds4_session_fork(NULL, &session));
    REFUSED(PYDS4_INVALID_ARGUMENT, "session", pyds4_session_prefill(NULL, prompt, 1, &count));
    REFUSED(PYDS4_INVALID_ARGUMENT, "session", pyds4_session_decode(NULL, 1));
    REFUSED(PYDS4_INVALID_ARGUMENT, "session", pyds4_session_logits(NULL, &logit, 1));
    REFUSED(PYDS4_INVALID_ARGUMENT, "session", pyds4_session_tokens(NULL, &token, 1));
    REFUSED(PYDS4_INVALID_ARGUMENT, "session", pyds4_session_rewind(NULL, prompt, 1, &count));
    REFUSED(PYDS4_INVALID_ARGUMENT, "engine", pyds4_engine_step(NULL, NULL, 0));
    REFUSED(PYDS4_INVALID_ARGUMENT, "engine", pyds4_engine_config(NULL, NULL));
    pyds4_engine_free(NULL);
    pyds4_session_free(NULL);
    pyds4_file_free(NULL);
    pyds4_session_cancel(NULL);
}

static void reads_a_file(const char *path) {
    pyds4_file *file;
    CHECK(pyds4_file_open(path, &file) == PYDS4_OK);
    CHECK(pyds4_file_part_count(file) == 1);
    CHECK(strcmp(pyds4_file_part_path(file, 0), path) == 0);
    CHECK(pyds4_file_part_path(file, 1) == NULL);

    pyds4_metadata entry;
    CHECK(pyds4_file_metadata(file, 0, &entry) == PYDS4_OK);
    CHECK(strcmp(entry.key, "general.architecture") == 0);
    CHECK(entry.type == 8 && entry.element_type == -1 && entry.count == 1);
    CHECK(entry.byte_count == 9 && memcmp(entry.data, "deepseek4", 9) == 0);
    size_t count = pyds4_file_metadata_count(file);
    REFUSED(PYDS4_INVALID_ARGUMENT, "metadata", pyds4_file_metadata(file, count, &entry));
    REFUSED(PYDS4_INVALID_ARGUMENT, "metadata", pyds4_file_metadata(file, (size_t)-1, &entry));
    REFUSED(PYDS4_INVALID_ARGUMENT, "out", pyds4_file_metadata(file, 0, NULL));

    pyds4_tensor tensor;
    uint64_t bytes = 0;
    for (size_t i = 0; i < pyds4_file_tensor_count(file); i++) {
        CHECK(pyds4_file_tensor(file, i, &tensor) == PYDS4_OK);
        CHECK(tensor.offset + tensor.byte_count <= pyds4_file_byte_count(file));
        CHECK(tensor.dimension_count >= 1 && tensor.shape[3] == 1);
        bytes += tensor.byte_count;
    }
    REFUSED(PYDS4_INVALID_ARGUMENT, "tensor", pyds4_file_tensor(file, 1 << 30, &tensor));

    pyds4_memory memory;
    CHECK(pyds4_file_memory(file, 1000, 1, &memory) == PYDS4_OK);
    CHECK(memory.weights == bytes && memory.kv > 0 && memory.buffers > 0);
    REFUSED(PYDS4_INVALID_ARGUMENT, "tokens", pyds4_file_memory(file, UINT64_MAX, 1, &memory));
    pyds4_file_free(file);
}

static float *logits_of(pyds4_session *session, size_t count) {
    float *logits = malloc(count * sizeof *logits);
    CHECK(logits && pyds4_session_logits(session, logits, count) == PYDS4_OK);
    return logits;
}

static void runs_a_session(const char *path) {
    pyds4_engine_options options = {sizeof options, NULL, 2, 1};
    pyds4_engine *engine;
    CHECK(pyds4_engine_open(path, &options, &engine) == PYDS4_OK);
    CHECK(strcmp(pyds4_engine_backend(engine), "cpu") == 0);
    CHECK(pyds4_file_tensor_count(pyds4_engine_file(engine)) > 0);
    pyds4_config config = {.struct_size = sizeof config};
    CHECK(pyds4_engine_config(engine, &config) == PYDS4_OK);
    CHECK(config.threads == 2 && config.roundings == 1 && config.layer_count > 0);
    config.struct_size = 8;
    REFUSED(PYDS4_INVALID_ARGUMENT, "struct_size", pyds4_engine_config(engine, &config));
    size_t vocabulary = (size_t)config.vocabulary_size;

    pyds4_session *session, *twin, *other;
    REFUSED(PYDS4_INVALID_ARGUMENT, "context", pyds4_session_create(engine, UINT64_MAX, &session));
    REFUSED(PYDS4_INVALID_ARGUMENT, "session", pyds4_session_create(engine, 0, NULL));
    CHECK(pyds4_session_create(engine, PROMPT, &session) == PYDS4_OK);
    CHECK(pyds4_session_context(session) == PROMPT && pyds4_session_position(session) == 0);
    float *none = calloc(vocabulary, sizeof *none);
    REFUSED(PYDS4_NO_LOGITS, "no token", pyds4_session_logits(session, none, vocabulary));

    size_t reused = 99;
    REFUSED(PYDS4_INVALID_ARGUMENT, "tokens", pyds4_session_prefill(session, NULL, 3, &reused));
    REFUSED(PYDS4_INVALID_ARGUMENT, "empty", pyds4_session_prefill(session, prompt, 0, &reused));
    CHECK(pyds4_session_prefill(session, prompt, (size_t)-1, &reused) == PYDS4_INVALID_ARGUMENT);
    CHECK(pyds4_session_prefill(session, prompt, 30, &reused) == PYDS4_OK && reused == 0);
    CHECK(pyds4_session_prefill(session, prompt, 35, NULL) == PYDS4_OK);
    REFUSED(PYDS4_INVALID_ARGUMENT, "room", pyds4_session_logits(session, none, vocabulary - 1));
    REFUSED(PYDS4_TOKEN_OUT_OF_RANGE, "-5", pyds4_session_decode(session, -5));
    int32_t held[4] = {0};
    CHECK(pyds4_session_tokens(session, held, 4) == PYDS4_OK);
    CHECK(memcmp(held, prompt, sizeof held) == 0);

    CHECK(pyds4_session_fork(session, &twin) == PYDS4_OK);
    CHECK(pyds4_session_create(engine, 0, &other) == PYDS4_OK);
    for (int i = 35; i < PROMPT; i++) CHECK(pyds4_session_decode(session, prompt[i]) == PYDS4_OK);
    REFUSED(PYDS4_CONTEXT_FULL, "41", pyds4_session_decode(session, 9));

    /* The same tokens through a step, beside an item that fails. */
    pyds4_sampling greedy = {sizeof greedy, 0, 1, 0, 0};
    pyds4_step_item items[3];
    memset(items, 0, sizeof items);
    for (int i = 0; i < 3; i++) items[i].struct_size = sizeof items[i];
    items[0].session = twin, items[0].tokens = prompt + 35, items[0].n_tokens = PROMPT - 35;
    items[0].sampling = &greedy;
    items[0].all_logits = malloc((PROMPT - 35) * vocabulary * sizeof(float));
    items[1].session = other, items[1].tokens = NULL, items[1].n_tokens = 7;
    items[2].session = session, items[2].tokens = prompt, items[2].n_tokens = 1;
    CHECK(pyds4_engine_step(engine, items, 3) == PYDS4_OK);
    CHECK(items[0].status == PYDS4_OK && items[0].token >= 0 && items[0].message[0] == 0);
    CHECK(items[1].status == PYDS4_INVALID_ARGUMENT && items[1].token == -1);
    CHECK(items[2].status == PYDS4_CONTEXT_FULL && strstr(items[2].message, "context"));
    float *a = logits_of(session, vocabulary), *b = logits_of(twin, vocabulary);
    CHECK(memcmp(a, b, vocabulary * sizeof *a) == 0);
    CHECK(memcmp(b, items[0].all_logits + (PROMPT - 36) * vocabulary, vocabulary * sizeof *b) == 0);
    for (size_t i = 0; i < vocabulary; i++) CHECK(b[i] <= b[items[0].token]);

    items[1].tokens = prompt, items[1].n_tokens = (size_t)-1;
    CHECK(pyds4_engine_step(engine, items + 1, 1) == PYDS4_OK);
    CHECK(items[1].status == PYDS4_INVALID_ARGUMENT);
    CHECK(pyds4_engine_step(engine, items, (size_t)-1) == PYDS4_INVALID_ARGUMENT);
    items[1].n_tokens = 1, items[1].sampling = &greedy, items[1].random = 1;
    REFUSED(PYDS4_INVALID_ARGUMENT, "random", pyds4_engine_step(engine, items + 1, 1));
    CHECK(pyds4_session_position(other) == 0);
    items[1].struct_size = 1;
    REFUSED(PYDS4_INVALID_ARGUMENT, "struct_size", pyds4_engine_step(engine, items + 1, 1));

    int32_t token = -2;
    CHECK(pyds4_sample(b, vocabulary, &greedy, 0.5, &token) == PYDS4_OK && token == items[0].token);
    REFUSED(PYDS4_INVALID_ARGUMENT, "random", pyds4_sample(b, vocabulary, &greedy, 1.0, &token));
    CHECK(pyds4_sample(b, 0, &greedy, 0.5, &token) == PYDS4_INVALID_ARGUMENT);
    CHECK(pyds4_sample(b, (size_t)-1, &greedy, 0.5, &token) == PYDS4_INVALID_ARGUMENT);
    greedy.top_p = 0;
    REFUSED(PYDS4_INVALID_ARGUMENT, "top_p", pyds4_sample(b, vocabulary, &greedy, 0.5, &token));

    size_t kept = 99;
    CHECK(pyds4_session_rewind(session, prompt, 33, &kept) == PYDS4_OK && kept == 30);
    pyds4_session_cancel(session);
    CHECK(pyds4_session_prefill(session, prompt, 33, &reused) == PYDS4_CANCELLED);
    CHECK(pyds4_session_position(session) == 30);
    CHECK(pyds4_session_prefill(session, prompt, 33, &reused) == PYDS4_OK && reused == 30);

    free(items[0].all_logits), free(none), free(a), free(b);
    pyds4_session_free(session);
    pyds4_engine_free(engine); /* before its sessions */
    CHECK(pyds4_session_prefill(other, prompt, PROMPT, &reused) == PYDS4_OK);
    pyds4_session_free(twin);
    pyds4_session_free(other);
}

static void *fails_elsewhere(void *message) {
    CHECK(strcmp(pyds4_last_error(), "") == 0);
    CHECK(pyds4_session_decode(NULL, 1) == PYDS4_INVALID_ARGUMENT);
    strncpy(message, pyds4_last_error(), 255);
    return NULL;
}

static void keeps_a_message_for_each_thread(void) {
    pyds4_engine *engine;
    char theirs[256] = "";
    pthread_t thread;
    CHECK(pyds4_engine_open("/no/such.gguf", NULL, &engine) == PYDS4_FILE_NOT_FOUND);
    CHECK(pthread_create(&thread, NULL, fails_elsewhere, theirs) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(strstr(theirs, "session") && strstr(pyds4_last_error(), "/no/such"));
}

int main(int count, char **arguments) {
    CHECK(count == 2);
    CHECK(strcmp(pyds4_last_error(), "") == 0);
    CHECK(strlen(pyds4_version()) > 0 && strlen(pyds4_instruction_set()) > 0);
    for (int i = 0; i < PROMPT; i++) prompt[i] = 8 + i * 37 % 500;
    refuses_what_is_not_there(arguments[1]);
    reads_a_file(arguments[1]);
    runs_a_session(arguments[1]);
    keeps_a_message_for_each_thread();
    puts("ok");
    return 0;
}
