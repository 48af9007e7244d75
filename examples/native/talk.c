/* talk FOLDER < question.raw > answer.raw: 16-bit samples at the model's rate in and out, the text to standard error. */
#include <moshi.h>
#include <stdio.h>
#include <stdlib.h>

static int fail(void) {
    fprintf(stderr, "error: %s\n", moshi_error());
    return 1;
}

int main(int count, char **values) {
    moshi_model *model = moshi_load(count > 1 ? values[1] : ".", NULL, NULL);
    moshi_info info = {.size = sizeof info};
    if (!model || moshi_describe(model, &info)) return fail();
    moshi_session *session = moshi_session_new(model, NULL);
    size_t size = (size_t)info.frame_size;
    int16_t *raw = calloc(size, sizeof *raw);
    float *pcm = calloc(size, sizeof *pcm);
    if (!session || !raw || !pcm) return fail();
    moshi_frame frame = {.size = sizeof frame};
    while (fread(raw, sizeof *raw, size, stdin) == size) {
        for (size_t i = 0; i < size; ++i) pcm[i] = (float)raw[i] / 32768.0f;
        if (moshi_step(session, pcm, 0, &frame)) return fail();
        for (int i = 0; i < frame.samples; ++i) {
            float sample = frame.pcm[i] > 1 ? 1 : frame.pcm[i] < -1 ? -1 : frame.pcm[i];
            raw[i] = (int16_t)(sample * 32767.0f);
        }
        fwrite(raw, sizeof *raw, (size_t)frame.samples, stdout);
        fputs(frame.text, stderr);
    }
    free(raw);
    free(pcm);
    moshi_session_free(session);
    moshi_free(model);
    return 0;
}
