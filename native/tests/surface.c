/* moshi-surface FOLDER CODEC FILE: every function of the header from C99, with good arguments and with bad ones. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moshi.h"

static int lines = 0, reports = 0;

static void check(int condition, int line) {
    if (!condition) {
        fprintf(stderr, "surface.c:%d: %s\n", line, moshi_error());
        exit(1);
    }
}
#define CHECK(condition) check((condition) != 0, __LINE__)

static void on_log(int32_t level, const char *line, void *user) {
    CHECK(level == MOSHI_LOG_INFO && line[0] && user == &lines);
    ++lines;
}

static void on_progress(uint64_t done, uint64_t total, void *user) {
    CHECK(done <= total && user == &reports);
    ++reports;
}

static int refused(int32_t status, const char *words) { return status < 0 && strstr(moshi_error(), words) != NULL; }

static void test_talk(const char *folder, const char *file) {
    moshi_model *model = moshi_load(folder, on_progress, &reports);
    CHECK(model && lines == 1 && reports > 0);
    moshi_info info = {.size = sizeof info};
    CHECK(moshi_describe(model, &info) == 0);
    CHECK(info.sample_rate == 24000 && info.frame_size == 1920 && info.codebooks > 0 && info.starts == 1);
    CHECK(info.type[0] && info.source[0] && info.precision[0] && info.mlx[0] && info.license && info.bytes > 0 && info.pad_token == -1);
    CHECK(moshi_start_name(model, 0) && !moshi_start_name(model, 1) && !moshi_start_name(NULL, 0));

    moshi_options options = {.size = sizeof options};
    CHECK(moshi_default_options(model, &options) == 0);
    options.seed = 5;
    moshi_session *session = moshi_session_new(model, &options);
    CHECK(session);
    float *pcm = calloc((size_t)info.frame_size, sizeof *pcm);
    CHECK(pcm);
    moshi_frame frame = {.size = sizeof frame};
    for (int t = 0; t < 3; ++t) CHECK(moshi_step(session, pcm, 0, &frame) == 0);
    CHECK(frame.samples == info.frame_size && frame.code_count == info.codebooks && frame.index == 2 && fabs(frame.time - 0.16) < 1e-9);
    CHECK(frame.text && frame.codes && frame.pcm && frame.pause_count == 0 && frame.complete == 0 && frame.milliseconds > 0);
    moshi_word word = {.size = sizeof word};
    CHECK(moshi_flush(session) == 0);
    while (moshi_next_word(session, &word) == 1) CHECK(word.text[0] && word.start < word.end);
    CHECK(moshi_save(session, file) == 0);
    int32_t token = (moshi_step(session, pcm, 0, &frame), frame.codes[0]);
    CHECK(moshi_restore(session, file) == 0);
    CHECK(moshi_step(session, pcm, 0, &frame) == 0 && frame.codes[0] == token && frame.index == 3);
    options.temp = 0;
    CHECK(moshi_set_sampling(session, &options) == 0);
    CHECK(moshi_reset(session, NULL) == 0 && moshi_reset(session, &options) == 0);
    CHECK(moshi_step(session, pcm, 0, &frame) == 0 && frame.index == 0);

    /* Refusals: a sentence each, and the conversation where it was. */
    CHECK(refused(moshi_describe(NULL, &info), "model is NULL") && refused(moshi_describe(model, NULL), "the info is NULL"));
    info.size = 4;
    CHECK(refused(moshi_describe(model, &info), "set the size of the info"));
    CHECK(refused(moshi_default_options(NULL, &options), "model is NULL") && refused(moshi_default_options(model, NULL), "NULL"));
    CHECK(!moshi_session_new(NULL, NULL) && strstr(moshi_error(), "model is NULL"));
    moshi_options bad = options;
    bad.size = 0;
    CHECK(!moshi_session_new(model, &bad) && strstr(moshi_error(), "set the size of the options"));
    bad = options;
    bad.temp = -1;
    CHECK(refused(moshi_set_sampling(session, &bad), "temp should be a temperature"));
    bad.temp = NAN;
    CHECK(refused(moshi_set_sampling(session, &bad), "temp should be a temperature"));
    bad = options;
    bad.top_k = -1;
    CHECK(refused(moshi_set_sampling(session, &bad), "top_k should be 0 (all) or more"));
    bad = options;
    bad.start = 1;
    CHECK(!moshi_session_new(model, &bad) && strstr(moshi_error(), "start should be 0 to 0"));
    CHECK(refused(moshi_set_sampling(session, NULL), "options is NULL") && refused(moshi_set_sampling(NULL, &options), "session is NULL"));
    CHECK(refused(moshi_reset(NULL, NULL), "session is NULL"));
    CHECK(refused(moshi_step(NULL, pcm, 0, &frame), "session is NULL") && refused(moshi_step(session, NULL, 0, &frame), "pcm is NULL"));
    CHECK(refused(moshi_step(session, pcm, 0, NULL), "frame is NULL") && refused(moshi_step(session, pcm, 8, &frame), "flags should be"));
    CHECK(refused(moshi_step(session, pcm, MOSHI_ENDED, &frame), "only translation models"));
    pcm[7] = INFINITY;
    CHECK(refused(moshi_step(session, pcm, 0, &frame), "sample 7 of the frame is not a number"));
    pcm[7] = 3000;
    CHECK(refused(moshi_step(session, pcm, 0, &frame), "sound lies between -1 and 1"));
    pcm[7] = 0;
    moshi_frame small = {.size = 8};
    CHECK(refused(moshi_step(session, pcm, 0, &small), "set the size of the frame"));
    CHECK(moshi_step(session, pcm, 0, &frame) == 0 && frame.index == 1);
    CHECK(refused(moshi_next_word(NULL, &word), "session is NULL") && refused(moshi_next_word(session, NULL), "NULL") && refused(moshi_flush(NULL), "session is NULL"));
    CHECK(refused(moshi_save(session, "talk.bin"), "should end in .safetensors") && refused(moshi_save(session, "/nowhere/at/all/x.safetensors"), "does not exist"));
    char *endless = calloc(100001, 1);
    CHECK(endless && memset(endless, 'x', 100000) && refused(moshi_save(session, endless), "a name of more than 4096 bytes"));
    CHECK(refused(moshi_restore(session, endless), "a name of") && !moshi_load(endless, NULL, NULL) && refused(moshi_verify(""), "has no name"));
    free(endless);
    CHECK(refused(moshi_restore(session, folder), "is no file; expected a saved conversation"));
    CHECK(refused(moshi_save(NULL, file), "session is NULL") && refused(moshi_save(session, NULL), "file is NULL"));
    CHECK(refused(moshi_restore(session, "missing.safetensors"), "does not exist") && refused(moshi_restore(session, NULL), "file is NULL"));
    CHECK(refused(moshi_restore(NULL, file), "session is NULL"));
    int32_t codes[64] = {0};
    CHECK(refused(moshi_encode(session, pcm, codes), "no codec") && refused(moshi_decode(session, codes, pcm), "no codec"));
    CHECK(moshi_verify(folder) == 0 && refused(moshi_verify(NULL), "folder is NULL") && refused(moshi_verify("missing"), "is not a folder"));
    CHECK(!moshi_load("no\xFFtext", NULL, NULL) && strstr(moshi_error(), "no\xEF\xBF\xBDtext is not a folder"));
    CHECK(!moshi_load(NULL, NULL, NULL) && !moshi_load("missing", NULL, NULL) && strstr(moshi_error(), "is not a folder"));
    /* A struct of a program that knows more than the library, or less than its next version. */
    struct { moshi_frame frame; double later; } larger = {.frame = {.size = sizeof larger}, .later = 7};
    CHECK(moshi_step(session, pcm, 0, &larger.frame) == 0 && larger.later == 7 && larger.frame.size == sizeof larger);
    moshi_free(model);
    moshi_free(model);
    CHECK(refused(moshi_describe(model, &info), "this model was freed before") && !moshi_session_new(model, NULL));
    CHECK(moshi_step(session, pcm, 0, &frame) == 0);
    moshi_session_free(session);
    moshi_session_free(session);
    CHECK(refused(moshi_step(session, pcm, 0, &frame), "this session was freed before") && refused(moshi_save(session, file), "freed"));
    /* No address is looked at that the library did not give. */
    CHECK(refused(moshi_step((moshi_session *)pcm, pcm, 0, &frame), "or never was one") && refused(moshi_reset((moshi_session *)model, NULL), "never was one"));
    moshi_free((moshi_model *)pcm);
    free(pcm);
}

static void test_codec(const char *folder) {
    moshi_model *model = moshi_load(folder, NULL, NULL);
    CHECK(model);
    moshi_info info = {.size = sizeof info};
    CHECK(moshi_describe(model, &info) == 0 && strcmp(info.type, "codec") == 0);
    moshi_session *session = moshi_session_new(model, NULL);
    CHECK(session);
    float *pcm = calloc((size_t)info.frame_size, sizeof *pcm);
    int32_t *codes = calloc((size_t)info.codebooks, sizeof *codes);
    CHECK(pcm && codes && moshi_encode(session, pcm, codes) == 0 && moshi_decode(session, codes, pcm) == 0);
    codes[1] = -1;
    CHECK(refused(moshi_decode(session, codes, pcm), "code 1 should be 0 to"));
    pcm[0] = NAN;
    CHECK(refused(moshi_encode(session, pcm, codes), "not a number"));
    moshi_frame frame = {.size = sizeof frame};
    pcm[0] = 0;
    CHECK(refused(moshi_step(session, pcm, 0, &frame), "is a codec") && refused(moshi_save(session, "x.safetensors"), "is a codec"));
    CHECK(refused(moshi_restore(session, "x.safetensors"), "is a codec") && refused(moshi_encode(NULL, pcm, codes), "NULL") && refused(moshi_encode(session, pcm, NULL), "NULL"));
    CHECK(refused(moshi_decode(session, NULL, pcm), "NULL") && moshi_reset(session, NULL) == 0);
    moshi_session_free(session);
    moshi_free(model);
    free(pcm);
    free(codes);
}

int main(int count, char **values) {
    if (count != 4) return 2;
    CHECK(moshi_abi() == MOSHI_ABI && strncmp(moshi_version(), "libmoshi ", 9) == 0 && moshi_error()[0] == '\0');
    moshi_set_log(on_log, &lines);
    test_talk(values[1], values[3]);
    moshi_set_log(NULL, NULL);
    test_codec(values[2]);
    moshi_free(NULL);
    moshi_session_free(NULL);
    puts("ok");
    return 0;
}
