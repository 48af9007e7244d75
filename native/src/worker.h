// The one thread of this process on which MLX runs.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

namespace moshi {

// Reading an exported function attaches it to the first stream of its device in the process, and a stream works in the thread that made it:
// whoever loads a second model on a second thread fails at its first step. So all of MLX is called here, and callers wait.
class Worker {
   public:
    static Worker& instance();

    // Runs `work` on the thread and returns when it is done. What it throws is thrown here as an Error with the same words.
    void run(const std::function<void()>& work);

   private:
    struct Task {
        const std::function<void()>* work;
        std::string error = {};
        bool done = false, failed = false;
    };

    void start(std::unique_lock<std::mutex>& lock);
    void serve();
    static std::string check_streams();

    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<Task*> waiting_;
    std::thread::id id_;
    std::string refused_;
    enum { stopped, starting, running } state_ = stopped;
    long process_ = 0;
};

}  // namespace moshi
