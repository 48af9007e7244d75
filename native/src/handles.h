// What programs hold of the library's objects: numbers that look like pointers. None is given twice, so what was freed is known,
// whoever still holds it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

#include "error.h"

namespace moshi {

template <class Handle, class Object>
class Handles {
   public:
    // `what`: in sentences. `first` tells the handles of different kinds apart, 0 to 15.
    Handles(const char* what, uintptr_t first) : what_(what), next_(16 + first) {}

    Handle* add(std::shared_ptr<Object> object) {
        std::lock_guard lock(mutex_);
        auto* handle = reinterpret_cast<Handle*>(next_);
        objects_.emplace(next_, std::move(object));
        next_ += 16;
        return handle;
    }

    // To be called on the worker's thread: the object may end with the last pointer to it.
    std::shared_ptr<Object> get(const Handle* handle) const {
        std::lock_guard lock(mutex_);
        return find(handle)->second;
    }

    std::shared_ptr<Object> take(Handle* handle) {
        std::lock_guard lock(mutex_);
        auto found = find(handle);
        auto object = found->second;
        objects_.erase(found);
        return object;
    }

    // What `look` makes of the object, which nobody frees meanwhile; on any thread.
    template <class Look>
    auto look_at(const Handle* handle, const Look& look) const {
        std::lock_guard lock(mutex_);
        return look(*find(handle)->second);
    }

   private:
    using Objects = std::map<uintptr_t, std::shared_ptr<Object>>;

    typename Objects::const_iterator find(const Handle* handle) const {
        if (!handle) fail(what_, " is NULL");
        auto found = objects_.find(reinterpret_cast<uintptr_t>(handle));
        if (found == objects_.end()) fail("this ", what_, " was freed before, or never was one");
        return found;
    }

    const char* what_;
    uintptr_t next_;
    mutable std::mutex mutex_;
    Objects objects_;
};

}  // namespace moshi
