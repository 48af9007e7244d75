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
#include "handles.h"
#include "mlx/version.h"
#include "session.h"
#include "utf8.h"
#include "worker.h"

namespace {

using namespace moshi;

struct OpenSession {
    OpenSession(std::shared_ptr<Model> model, const Options& options) : session(std::move(model), options) {}
    Session session;
    Word word;  // the one that moshi_next_word gave last
};

using Models = Handles<moshi_model, Model>;
using Sessions = Handles<moshi_session, OpenSession>;

// Never destroyed: what is in them ends on the worker's thread or with the process.
Models& models() {
    static auto* handles = new Models("model", 0);
    return *handles;
}

Sessions& sessions() {
    static auto* handles = new Sessions("session", 1);
    return *handles;
}

thread_local std::string last_error;

// A program may choose another function from within the one it has.
std::recursive_mutex log_mutex;
void (*log_line)(int32_t, const char*, void*) = nullptr;
void* log_user = nullptr;

void log(int32_t level, const std::string& line) {
    std::lock_guard lock(log_mutex);
    if (log_line) log_line(level, line.c_str(), log_user);
}

// Sentences are text, also about files whose names or contents are none.
void note(const char* what) noexcept {
    try {
        Utf8Decoder decoder;
        std::string text;
        for (; *what; ++what) text += decoder.feed(uint8_t(*what));
        last_error = text + decoder.flush();
    } catch (...) {
        last_error.clear();
    }
}

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

// `work` with a session, on the worker's thread.
template <class Work>
int32_t with(moshi_session* handle, const Work& work) noexcept {
    return on_worker([&] { work(*sessions().get(handle)); });
}

void need(const void* pointer, const char* name) {
    if (!pointer) fail(name, " is NULL");
}

void need_path(const char* path, const char* name) {
    constexpr size_t longest = 4096;
    need(path, name);
    if (!*path) fail(name, " has no name");
    if (strnlen(path, longest) == longest) fail(name, " has a name of more than ", longest, " bytes");
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

void describe(const Manifest& m, moshi_info& value) {
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
        need_path(folder, "folder");
        auto begin = std::chrono::steady_clock::now();
        Manifest manifest = read_manifest(folder);
        std::ostringstream line;
        line << manifest.source << " (" << manifest.type << "), licence: " << (manifest.license.empty() ? "see the model card" : manifest.license) << ", "
             << manifest.precision << ", loaded in ";
        moshi_model* handle = nullptr;
        Worker::instance().run([&] {
            Model::Progress report;
            if (progress) report = [=](uint64_t done, uint64_t total) { progress(done, total, user); };
            handle = models().add(std::make_shared<Model>(std::move(manifest), report));
        });
        line << std::fixed << std::setprecision(2) << std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() << " s";
        log(MOSHI_LOG_INFO, line.str());
        return handle;
    });
}

void moshi_free(moshi_model* model) {
    if (model) on_worker([&] { models().take(model); });
}

int32_t moshi_verify(const char* folder) {
    return guarded<int32_t>(-1, [&] {
        need_path(folder, "folder");
        Manifest manifest = read_manifest(folder);
        for (const auto& [name, _] : manifest.files) check_sum(manifest, name);
        return 0;
    });
}

int32_t moshi_describe(const moshi_model* model, moshi_info* info) {
    return guarded<int32_t>(-1, [&] {
        moshi_info value{};
        models().look_at(model, [&](const Model& found) { describe(found.manifest(), value); });
        give(info, value, info_size, "the info");
        return 0;
    });
}

const char* moshi_start_name(const moshi_model* model, int32_t start) {
    return guarded<const char*>(nullptr, [&] {
        return models().look_at(model, [&](const Model& found) {
            const auto& starts = found.manifest().starts;
            if (start < 0 || size_t(start) >= starts.size()) fail("start should be 0 to ", starts.size() - 1, ", found ", start);
            return starts[size_t(start)].name.c_str();
        });
    });
}

int32_t moshi_default_options(const moshi_model* model, moshi_options* options) {
    return guarded<int32_t>(-1, [&] {
        Options o = models().look_at(model, [](const Model& found) { return default_options(found.manifest()); });
        give(options, {0, o.seed, o.temp, o.temp_text, o.top_k, o.top_k_text, o.start}, options_size, "the options");
        return 0;
    });
}

moshi_session* moshi_session_new(moshi_model* model, const moshi_options* options) {
    moshi_session* handle = nullptr;
    on_worker([&] {
        auto found = models().get(model);
        Options chosen = options_of(found->manifest(), options);
        handle = sessions().add(std::make_shared<OpenSession>(std::move(found), chosen));
    });
    return handle;
}

void moshi_session_free(moshi_session* session) {
    if (session) on_worker([&] { sessions().take(session); });
}

int32_t moshi_reset(moshi_session* session, const moshi_options* options) {
    return with(session, [&](OpenSession& open) {
        open.session.reset(options_of(open.session.manifest(), options));
    });
}

int32_t moshi_set_sampling(moshi_session* session, const moshi_options* options) {
    return with(session, [&](OpenSession& open) {
        need(options, "options");
        open.session.set_sampling(options_of(open.session.manifest(), options));
    });
}

int32_t moshi_step(moshi_session* session, const float* pcm, int32_t flags, moshi_frame* frame) {
    auto begin = std::chrono::steady_clock::now();
    return with(session, [&](OpenSession& open) {
        need(pcm, "pcm");
        need(frame, "frame");
        if (flags & ~MOSHI_ENDED) fail("flags should be 0 or MOSHI_ENDED, found ", flags);
        moshi_frame value{};
        // Whether the struct can be filled is known before the step is made.
        give(frame, value, frame_size, "the frame");
        const Reply& reply = open.session.step(pcm, flags & MOSHI_ENDED);
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
        value.time = double(reply.index) / open.session.manifest().frame_rate;
        value.milliseconds = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
        give(frame, value, frame_size, "the frame");
    });
}

int32_t moshi_next_word(moshi_session* session, moshi_word* word) {
    int32_t found = 0;
    int32_t status = with(session, [&](OpenSession& open) {
        give(word, {}, word_size, "the word");
        if (!open.session.next_word(open.word)) return;
        give(word, {0, open.word.text.c_str(), open.word.start, open.word.end}, word_size, "the word");
        found = 1;
    });
    return status ? status : found;
}

int32_t moshi_flush(moshi_session* session) {
    return with(session, [&](OpenSession& open) {
        open.session.flush();
    });
}

int32_t moshi_save(moshi_session* session, const char* file) {
    return with(session, [&](OpenSession& open) {
        need_path(file, "file");
        open.session.save(file);
    });
}

int32_t moshi_restore(moshi_session* session, const char* file) {
    return with(session, [&](OpenSession& open) {
        need_path(file, "file");
        open.session.restore(file);
    });
}

int32_t moshi_encode(moshi_session* session, const float* pcm, int32_t* codes) {
    return with(session, [&](OpenSession& open) {
        need(pcm, "pcm");
        need(codes, "codes");
        std::vector<int32_t> found = open.session.encode(pcm);
        std::copy(found.begin(), found.end(), codes);
    });
}

int32_t moshi_decode(moshi_session* session, const int32_t* codes, float* pcm) {
    return with(session, [&](OpenSession& open) {
        need(codes, "codes");
        need(pcm, "pcm");
        std::vector<float> found = open.session.decode(codes);
        std::copy(found.begin(), found.end(), pcm);
    });
}

}  // extern "C"
