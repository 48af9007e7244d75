/* libmoshi: models of the Moshi family, exported by `python -m moshi_mlx.export`, in C.
 *
 * A model is a folder, loaded once. A session is a conversation: 80 ms of sound in, 80 ms of sound and a text token out.
 *
 *     moshi_model *model = moshi_load("folder", NULL, NULL);
 *     moshi_session *session = moshi_session_new(model, NULL);
 *     moshi_frame frame = {sizeof frame};
 *     while (more(pcm)) { if (moshi_step(session, pcm, 0, &frame)) break; play(frame.pcm, frame.samples); }
 *
 * Errors. Functions that return a pointer return NULL on failure, those that return a number a negative one; moshi_error then says
 * in one sentence why. Nothing here prints, exits or throws.
 *
 * Structs begin with their `size`, which the caller sets to sizeof; members beyond it are not touched, so that programs go on
 * working when structs grow. Text is UTF-8. Members of a struct that point somewhere do so until the next call with the same session
 * (of moshi_info: as long as the model).
 *
 * Threads. Any thread may call anything. All models and sessions run on one thread of the library, so calls wait for one another;
 * calls with one session should come from one thread at a time, since each makes the pointers of the one before invalid.
 * A model may be freed before its sessions: it goes with the last of them. What was freed is known as such: calls with it fail,
 * and to free it again does nothing. MLX itself must not have been used by the process before the first moshi_load,
 * which sets it up: MLX_ENABLE_TF32 becomes 0 unless it is set, and on a Mac memory is wired, up to what the system recommends.
 */
#ifndef MOSHI_H
#define MOSHI_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define MOSHI_API
#else
#define MOSHI_API __attribute__((visibility("default")))
#endif

/* Counts up when a program that was compiled with an older header would go wrong. */
#define MOSHI_ABI 1

typedef struct moshi_model moshi_model;
typedef struct moshi_session moshi_session;

/* How tokens are drawn. A temperature of 0 takes the most probable one; a top_k of 0 chooses among all. */
typedef struct moshi_options {
    uint32_t size;
    uint32_t seed;    /* of this conversation's draws */
    float temp;       /* of audio */
    float temp_text;  /* of text */
    int32_t top_k;
    int32_t top_k_text;
    int32_t start;    /* which of the model's voices to begin with, see moshi_start_name */
} moshi_options;

/* What a step gave. */
typedef struct moshi_frame {
    uint32_t size;
    int32_t samples;      /* of pcm: a frame, or 0 where there is no reply (yet, or of a model that only hears) */
    const float *pcm;     /* not clipped */
    int32_t code_count;
    int32_t text_token;   /* -2 where there is none yet */
    const int32_t *codes; /* the reply's audio tokens, -2 where there are none yet */
    const char *text;     /* what became readable; a new word begins with a space */
    const float *pauses;  /* probability of a pause by each of the model's pause heads */
    int32_t pause_count;
    int32_t complete;     /* 1 from the frame on with which a translation ends */
    int64_t index;        /* frames of the conversation before this one */
    double time;          /* start of the frame in seconds */
    double milliseconds;  /* that the step took */
} moshi_frame;

/* A word, in seconds from the start of the sound that came out, or for speech-to-text that was heard. */
typedef struct moshi_word {
    uint32_t size;
    const char *text;
    double start;
    double end; /* -1 where nothing marked it */
} moshi_word;

typedef struct moshi_info {
    uint32_t size;
    int32_t sample_rate;    /* of all sound: 24000, one channel */
    int32_t frame_size;     /* samples in a frame: 1920 */
    int32_t codebooks;      /* audio tokens in a frame of the reply; 0 for speech-to-text */
    const char *type;       /* moshi, personaplex, hibiki, stt, codec */
    const char *source;     /* where the weights come from */
    const char *license;    /* of the weights; "" if unknown */
    const char *precision;
    const char *mlx;        /* version of MLX that made the folder and runs it */
    uint64_t bytes;         /* of memory: weights and one full conversation */
    int32_t starts;         /* how many voices a conversation can begin with */
    int32_t pause_heads;
    int32_t is_translation; /* the source's end is told by MOSHI_ENDED, and moshi_frame.complete says when the translation's has come */
    int32_t keeps_last;     /* the frame that completes a translation is part of it */
    double tail_seconds;    /* how long to wait for a translation's end at most */
    double delay_seconds;   /* of speech-to-text: how far text lags behind sound */
    double prefix_seconds;  /* of speech-to-text: silence to be heard before a recording */
    int32_t pad_token;      /* of translation: the text token of a frame in which nothing is said, else -1 */
} moshi_info;

/* For moshi_step: the user's side is over with this frame, which is not heard. Translation models only; once. */
#define MOSHI_ENDED 1

enum { MOSHI_LOG_INFO = 0, MOSHI_LOG_WARNING = 1 };

MOSHI_API int32_t moshi_abi(void);         /* to be compared with MOSHI_ABI */
MOSHI_API const char *moshi_version(void); /* of the library, and of MLX */
MOSHI_API const char *moshi_error(void);   /* why this thread's last call failed; until its next call that fails */

/* `log` gets lines about the work, on any thread; NULL for none. */
MOSHI_API void moshi_set_log(void (*log)(int32_t level, const char *line, void *user), void *user);

/* Load a folder. `progress`, unless NULL, is told how many bytes of weights are read, on the library's thread. */
MOSHI_API moshi_model *moshi_load(const char *folder, void (*progress)(uint64_t done, uint64_t total, void *user),
                                  void *user);
MOSHI_API void moshi_free(moshi_model *model);

/* Compare every file of a folder with the checksum in its manifest; loading does so for all but the weights. 0 if all are well. */
MOSHI_API int32_t moshi_verify(const char *folder);

MOSHI_API int32_t moshi_describe(const moshi_model *model, moshi_info *info);
MOSHI_API const char *moshi_start_name(const moshi_model *model, int32_t start); /* "" where there is only one, without a name */

/* The sampling that the checkpoint was published with, seed 0, the first voice. */
MOSHI_API int32_t moshi_default_options(const moshi_model *model, moshi_options *options);

/* Begin a conversation; options NULL for the defaults. */
MOSHI_API moshi_session *moshi_session_new(moshi_model *model, const moshi_options *options);
MOSHI_API void moshi_session_free(moshi_session *session);
MOSHI_API int32_t moshi_reset(moshi_session *session, const moshi_options *options); /* begin a new one */

/* From the next frame on. The seed and the start are not looked at. */
MOSHI_API int32_t moshi_set_sampling(moshi_session *session, const moshi_options *options);

/* The user's next frame_size samples -> the reply. A step refused for what it was given leaves the conversation as it was. */
MOSHI_API int32_t moshi_step(moshi_session *session, const float *pcm, int32_t flags, moshi_frame *frame);

/* 1 and the next word while there are completed ones, else 0. */
MOSHI_API int32_t moshi_next_word(moshi_session *session, moshi_word *word);

/* No more frames will come: the word under way is complete. */
MOSHI_API int32_t moshi_flush(moshi_session *session);

/* The conversation as a file, NAME.safetensors, which moshi_mlx.session.conversation_file reads too; and back into a session of the same model. */
MOSHI_API int32_t moshi_save(moshi_session *session, const char *file);
MOSHI_API int32_t moshi_restore(moshi_session *session, const char *file);

/* Mimi alone (folders made with --codec): a session is one stream each way. `codes` holds `codebooks` numbers. */
MOSHI_API int32_t moshi_encode(moshi_session *session, const float *pcm, int32_t *codes);
MOSHI_API int32_t moshi_decode(moshi_session *session, const int32_t *codes, float *pcm);

#ifdef __cplusplus
}
#endif

#endif
