// The C surface: arguments checked, exceptions turned into sentences, structs filled as far as the caller knows them.
#include "moshi.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <iomanip>
#include <memory>
#include <mutex>

#include "error.h"
#include "mlx/memory.h"
#include "mlx/version.h"
#include "session.h"
#include "worker.h"

struct moshi_model {
    std::shared_ptr<moshi::Model> model;
};

struct moshi_session {
    std::unique_ptr<moshi::Session> session;
    std::shared_ptr<moshi::Model> model;  // let go after the session
    moshi::Word word;
};

namespace {

using namespace moshi;

thread_local std::string last_error;

std::mutex log_mutex;
void (*log_line)(int32_t, const char*, void*) = nullptr;
void* log_user = nullptr;

void log(int32_t level, const std::string& line) {
    std::lock_guard lock(log_mutex);
    if (log_line) log_line(level, line.c_str(), log_user);
}

void note(const char* what) { last_error = what; }

// The result of `work`, or `failed` and the reason in moshi_error.
template <class Result, class Work>
Result guarded(Result failed, const Work& work) noexcept {
    try {
        return work();
    } catch (const std::bad_alloc&) {
        note("out of memory; close other programs or choose a model with fewer bits");
    } catch (const std::exception& e) {
        note(e.what());
    } catch (...) {
        note("an unknown error");
    }
    return failed;
}

template <class Work>
int32_t on_worker(const Work& work) noexcept {
    return guarded<int32_t>(-1, [&] {
        Worker::instance().run(work);
        return 0;
    });
}

void need(const void* pointer, const char* name) {
    if (!pointer) fail(name, " is NULL");
}

// Sizes of the structs in the first version of the header, which every caller knows.
constexpr size_t options_size = offsetof(moshi_options, start) + sizeof(int32_t);
constexpr size_t frame_size = offsetof(moshi_frame, milliseconds) + sizeof(double);
constexpr size_t word_size = offsetof(moshi_word, end) + sizeof(double);
constexpr size_t info_size = offsetof(moshi_info, pad_token) + sizeof(int32_t);

// What of `out` the caller's header knows.
template <class Struct>
void give(Struct* out, Struct value, size_t least, const char* name) {
    need(out, name);
    if (out->size < least) fail("set the size of ", name, " to sizeof, found ", out->size);
    value.size = out->size;
    std::memcpy(out, &value, std::min<size_t>(out->size, sizeof value));
}

Options options_of(const Manifest& manifest, const moshi_options* given) {
    Options usual = default_options(manifest);
    if (!given) return usual;
    if (given->size < options_size) fail("set the size of the options to sizeof, found ", given->size);
    moshi_options all{sizeof all, usual.seed, usual.temp, usual.temp_text, usual.top_k, usual.top_k_text, usual.start};
    std::memcpy(&all, given, std::min<size_t>(given->size, sizeof all));
    return {all.seed, all.temp, all.temp_text, all.top_k, all.top_k_text, all.start};
}

}  // namespace

extern "C" {

int32_t moshi_abi(void) { return MOSHI_ABI; }

const char* moshi_version(void) {
    static const std::string version = std::string("libmoshi " MOSHI_VERSION ", MLX ") + mlx::core::version();
    return version.c_str();
}

const char* moshi_error(void) { return last_error.c_str(); }

void moshi_set_log(void (*line)(int32_t, const char*, void*), void* user) {
    std::lock_guard lock(log_mutex);
    log_line = line;
    log_user = user;
}

moshi_model* moshi_load(const char* folder, void (*progress)(uint64_t, uint64_t, void*), void* user) {
    return guarded<moshi_model*>(nullptr, [&] {
        need(folder, "folder");
        auto begin = std::chrono::steady_clock::now();
        Manifest manifest = read_manifest(folder);
        auto handle = std::make_unique<moshi_model>();
        Worker::instance().run([&] {
            Model::Progress report;
            if (progress) report = [=](uint64_t done, uint64_t total) { progress(done, total, user); };
            handle->model = std::make_shared<Model>(std::move(manifest), report);
        });
        const Manifest& m = handle->model->manifest();
        double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        std::ostringstream line;
        line << std::fixed << std::setprecision(2);
        line << m.source << " (" << m.type << "), licence: " << (m.license.empty() ? "see the model card" : m.license) << ", " << m.precision << ", loaded in "
             << seconds << " s";
        log(MOSHI_LOG_INFO, line.str());
        return handle.release();
    });
}

void moshi_free(moshi_model* model) {
    if (!model) return;
    on_worker([&] { model->model.reset(); });
    delete model;
}

int32_t moshi_verify(const char* folder) {
    return guarded<int32_t>(-1, [&] {
        need(folder, "folder");
        Manifest manifest = read_manifest(folder);
        for (const auto& [name, _] : manifest.files) check_sum(manifest, name);
        return 0;
    });
}

int32_t moshi_describe(const moshi_model* model, moshi_info* info) {
    return guarded<int32_t>(-1, [&] {
        need(model, "model");
        const Manifest& m = model->model->manifest();
        moshi_info value{};
        value.sample_rate = m.sample_rate;
        value.frame_size = m.frame_size;
        value.codebooks = m.codebooks;
        value.type = m.type.c_str();
        value.source = m.source.c_str();
        value.license = m.license.c_str();
        value.precision = m.precision.c_str();
        value.mlx = m.mlx.c_str();
        value.bytes = m.memory;
        value.starts = int32_t(m.starts.size());
        value.pad_token = -1;
        if (m.translation) {
            value.pad_token = m.translation->pad;
            value.is_translation = 1;
            value.keeps_last = !m.translation->without_last;
            value.tail_seconds = m.translation->tail_seconds;
        }
        if (m.transcript) {
            value.pause_heads = m.transcript->heads;
            value.delay_seconds = m.transcript->delay_seconds;
            value.prefix_seconds = m.transcript->silence_prefix_seconds;
        }
        give(info, value, info_size, "the info");
        return 0;
    });
}

const char* moshi_start_name(const moshi_model* model, int32_t start) {
    return guarded<const char*>(nullptr, [&] {
        need(model, "model");
        const auto& starts = model->model->manifest().starts;
        if (start < 0 || size_t(start) >= starts.size()) fail("start should be 0 to ", starts.size() - 1, ", found ", start);
        return starts[size_t(start)].name.c_str();
    });
}

int32_t moshi_default_options(const moshi_model* model, moshi_options* options) {
    return guarded<int32_t>(-1, [&] {
        need(model, "model");
        Options o = default_options(model->model->manifest());
        give(options, {0, o.seed, o.temp, o.temp_text, o.top_k, o.top_k_text, o.start}, options_size, "the options");
        return 0;
    });
}

moshi_session* moshi_session_new(moshi_model* model, const moshi_options* options) {
    return guarded<moshi_session*>(nullptr, [&] {
        need(model, "model");
        Options chosen = options_of(model->model->manifest(), options);
        auto handle = std::make_unique<moshi_session>();
        handle->model = model->model;
        try {
            Worker::instance().run([&] { handle->session = std::make_unique<Session>(handle->model, chosen); });
        } catch (...) {
            // The model may have been freed meanwhile: its last owner lets go on the worker's thread.
            on_worker([&] { handle->model.reset(); });
            throw;
        }
        return handle.release();
    });
}

void moshi_session_free(moshi_session* session) {
    if (!session) return;
    on_worker([&] {
        session->session.reset();
        session->model.reset();
    });
    delete session;
}

int32_t moshi_reset(moshi_session* session, const moshi_options* options) {
    return on_worker([&] {
        need(session, "session");
        session->session->reset(options_of(session->model->manifest(), options));
    });
}

int32_t moshi_set_sampling(moshi_session* session, const moshi_options* options) {
    return on_worker([&] {
        need(session, "session");
        need(options, "options");
        session->session->set_sampling(options_of(session->model->manifest(), options));
    });
}

int32_t moshi_step(moshi_session* session, const float* pcm, int32_t flags, moshi_frame* frame) {
    auto begin = std::chrono::steady_clock::now();
    return on_worker([&] {
        need(session, "session");
        need(pcm, "pcm");
        need(frame, "frame");
        if (flags & ~MOSHI_ENDED) fail("flags should be 0 or MOSHI_ENDED, found ", flags);
        moshi_frame value{};
        // Whether the struct can be filled is known before the step is made.
        give(frame, value, frame_size, "the frame");
        const Reply& reply = session->session->step(pcm, flags & MOSHI_ENDED);
        value.samples = int32_t(reply.pcm.size());
        value.pcm = reply.pcm.data();
        value.code_count = int32_t(reply.tokens.size()) - 1;
        value.codes = reply.tokens.data() + 1;
        value.text_token = reply.tokens[0];
        value.text = reply.text.c_str();
        value.pauses = reply.pauses.data();
        value.pause_count = int32_t(reply.pauses.size());
        value.complete = reply.complete;
        value.index = reply.index;
        value.time = double(reply.index) / session->model->manifest().frame_rate;
        value.milliseconds = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
        give(frame, value, frame_size, "the frame");
    });
}

int32_t moshi_next_word(moshi_session* session, moshi_word* word) {
    int32_t found = 0;
    int32_t status = on_worker([&] {
        need(session, "session");
        give(word, {}, word_size, "the word");
        if (!session->session->next_word(session->word)) return;
        give(word, {0, session->word.text.c_str(), session->word.start, session->word.end}, word_size, "the word");
        found = 1;
    });
    return status ? status : found;
}

int32_t moshi_flush(moshi_session* session) {
    return on_worker([&] {
        need(session, "session");
        session->session->flush();
    });
}

int32_t moshi_save(moshi_session* session, const char* file) {
    return on_worker([&] {
        need(session, "session");
        need(file, "file");
        session->session->save(file);
    });
}

int32_t moshi_restore(moshi_session* session, const char* file) {
    return on_worker([&] {
        need(session, "session");
        need(file, "file");
        session->session->restore(file);
    });
}

int32_t moshi_encode(moshi_session* session, const float* pcm, int32_t* codes) {
    return on_worker([&] {
        need(session, "session");
        need(pcm, "pcm");
        need(codes, "codes");
        std::vector<int32_t> found = session->session->encode(pcm);
        std::copy(found.begin(), found.end(), codes);
    });
}

int32_t moshi_decode(moshi_session* session, const int32_t* codes, float* pcm) {
    return on_worker([&] {
        need(session, "session");
        need(codes, "codes");
        need(pcm, "pcm");
        std::vector<float> found = session->session->decode(codes);
        std::copy(found.begin(), found.end(), pcm);
    });
}

}  // extern "C"
