#include "worker.h"

#include <unistd.h>

#include <cstdlib>
#include <new>
#include <variant>

#include "error.h"
#include "mlx/backend/metal/metal.h"
#include "mlx/device.h"
#include "mlx/memory.h"
#include "mlx/stream.h"

namespace moshi {

namespace {

// MLX as the package in Python sets it up, before it is first used.
void set_up_mlx() {
    // Products in TF32 keep ten bits: enough for a near-tie of the codec's codes to fall the other way. Whoever has set it means it.
    setenv("MLX_ENABLE_TF32", "0", 0);
    if (!mlx::core::metal::is_available()) return;
    // Weights that are not used for a moment stay in memory (macOS 15 and later).
    const auto& info = mlx::core::device_info();
    auto limit = info.find("max_recommended_working_set_size");
    if (limit == info.end()) return;
    if (const size_t* bytes = std::get_if<size_t>(&limit->second)) mlx::core::set_wired_limit(*bytes);
}

}  // namespace

Worker& Worker::instance() {
    // Never destroyed: the thread waits in it until the process is gone.
    static Worker* worker = new Worker;
    return *worker;
}

void Worker::run(const std::function<void()>& work) {
    Task task{.work = &work};
    std::unique_lock lock(mutex_);
    if (state_ == running && process_ != getpid()) fail("libmoshi was loaded before this process was forked; call it in the process that loaded it");
    if (state_ == running && std::this_thread::get_id() == id_) {
        // A callback of the library calls the library.
        lock.unlock();
        work();
        return;
    }
    changed_.wait(lock, [this] { return state_ != starting; });
    if (state_ == stopped) start(lock);
    waiting_.push_back(&task);
    changed_.notify_all();
    changed_.wait(lock, [&] { return task.done; });
    if (task.failed) throw Error(task.error);
}

void Worker::start(std::unique_lock<std::mutex>& lock) {
    state_ = starting;
    try {
        std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {
        state_ = stopped;
        fail("the system gives no further thread");
    }
    changed_.wait(lock, [this] { return state_ != starting; });
    if (state_ == stopped) throw Error(refused_);
}

void Worker::serve() {
    std::string refused = check_streams();
    if (refused.empty()) set_up_mlx();
    std::unique_lock lock(mutex_);
    if (!refused.empty()) {
        refused_ = refused;
        state_ = stopped;
        changed_.notify_all();
        return;
    }
    state_ = running;
    id_ = std::this_thread::get_id();
    process_ = getpid();
    changed_.notify_all();
    for (;;) {
        changed_.wait(lock, [this] { return !waiting_.empty(); });
        Task* task = waiting_.front();
        waiting_.pop_front();
        lock.unlock();
        try {
            (*task->work)();
        } catch (const std::bad_alloc&) {
            task->failed = true;
            task->error = "out of memory; close other programs or choose a model with fewer bits";
        } catch (const std::exception& e) {
            task->failed = true;
            task->error = e.what();
        } catch (...) {
            task->failed = true;
            task->error = "an unknown error in MLX";
        }
        lock.lock();
        task->done = true;
        changed_.notify_all();
    }
}

std::string Worker::check_streams() {
    const auto& device = mlx::core::default_device();
    for (const auto& stream : mlx::core::get_streams())
        if (stream.device == device)
            return "this process has used MLX before the first moshi_load, on another thread; load a model first, or in a process of its own";
    return {};
}

}  // namespace moshi
