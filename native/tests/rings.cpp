// moshi-rings FOLDER FRAMES [compiled]: keys and values are written in place, and memory stays what it is.
#include <cstring>

#include "check.h"
#include "manifest.h"
#include "mlx/memory.h"
#include "session.h"
#include "worker.h"

using namespace moshi;

namespace {

const void* place(const Arrays& state, const std::string& name) { return state.at(name).data<void>(); }

void run(const std::string& folder, int frames, bool compiled) {
    auto model = std::make_shared<Model>(read_manifest(folder), nullptr, compiled);
    const RingsInfo& rings = *model->manifest().rings;
    Session session(model, default_options(model->manifest()));
    std::vector<float> pcm(size_t(model->manifest().frame_size));
    int moved = 0;
    size_t settled = 0;
    for (int t = 0; t < frames; ++t) {
        for (size_t i = 0; i < pcm.size(); ++i) pcm[i] = 0.1f * float((i * 7919 + size_t(t) * 104729) % 1000) / 1000;
        std::map<std::string, const void*> before;
        for (const std::string& name : rings.names) before[name] = place(session.state(), name);
        session.step(pcm.data(), false);
        for (const std::string& name : rings.names) moved += before[name] != place(session.state(), name);
        if (t == frames / 2) {
            mlx::core::clear_cache();
            settled = mlx::core::get_active_memory();
        }
    }
    mlx::core::clear_cache();
    size_t end = mlx::core::get_active_memory();
    std::printf("{\"rings\": %zu, \"sizes\": %zu, \"moved\": %d, \"settled\": %zu, \"end\": %zu}\n", rings.names.size(), rings.capacities.size(), moved, settled, end);
}

}  // namespace

int main(int count, char** values) {
    CHECK(count >= 3);
    std::string error = thrown([&] { Worker::instance().run([&] { run(values[1], std::atoi(values[2]), count > 3 && !std::strcmp(values[3], "compiled")); }); });
    std::fputs(error.c_str(), stderr);
    return error.empty() ? 0 : 1;
}
