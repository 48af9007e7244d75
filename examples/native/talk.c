/* talk FOLDER < question.raw > answer.raw: 16-bit samples at the model's rate in and out, the text to standard error. */
#include <moshi.h>
#include <stdio.h>
#include <stdlib.h>

int main(int count, char **values) {
    moshi_model *model = moshi_load(count > 1 ? values[1] : ".", NULL, NULL);
    moshi_session *session = model ? moshi_session_new(model, NULL) : NULL;
    moshi_info info = {.size = sizeof info};
    moshi_frame frame = {.size = sizeof frame};
    int good = session && moshi_describe(model, &info) == 0;
    size_t size = (size_t)info.frame_size;
    int16_t *raw = calloc(size + 1, sizeof *raw);
    float *pcm = calloc(size + 1, sizeof *pcm);
    while (good && raw && pcm && fread(raw, sizeof *raw, size, stdin) == size) {
        for (size_t i = 0; i < size; ++i) pcm[i] = (float)raw[i] / 32768.0f;
        if (!(good = moshi_step(session, pcm, 0, &frame) == 0)) break;
        for (int i = 0; i < frame.samples; ++i) {
            float sample = frame.pcm[i] > 1 ? 1 : frame.pcm[i] < -1 ? -1 : frame.pcm[i];
            raw[i] = (int16_t)(sample * 32767.0f);
        }
        fwrite(raw, sizeof *raw, (size_t)frame.samples, stdout);
        fputs(frame.text, stderr);
    }
    if (!good) fprintf(stderr, "error: %s\n", moshi_error());
    free(raw);
    free(pcm);
    moshi_session_free(session);
    moshi_free(model);
    return good ? 0 : 1;
}
