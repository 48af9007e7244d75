// moshi-cli: talk to an exported model without Python.
#include <csignal>
#include <cstdio>

#include "client.h"

namespace {

volatile std::sig_atomic_t stopped = 0;

int32_t find_voice(const Client& client, const std::string& name) {
    std::string known;
    for (int32_t i = 0; i < client.info.starts; ++i) {
        if (name == moshi_start_name(client.model.get(), i)) return i;
        known += std::string(known.empty() ? "" : ", ") + moshi_start_name(client.model.get(), i);
    }
    throw std::runtime_error("this folder has no voice '" + name + "'" + (known.empty() ? "" : "; it has " + known));
}

moshi_options choose(const Client& client, const Arguments& arguments) {
    moshi_options options{};
    options.size = sizeof options;
    check(moshi_default_options(client.model.get(), &options));
    options.seed = arguments.seed;
    options.temp = arguments.temp.value_or(options.temp);
    options.temp_text = arguments.text_temp.value_or(arguments.temp.value_or(options.temp_text));
    if (arguments.greedy) options.temp = options.temp_text = 0;
    options.top_k = arguments.top_k.value_or(options.top_k);
    options.top_k_text = arguments.text_top_k.value_or(options.top_k_text);
    if (!arguments.voice.empty()) options.start = find_voice(client, arguments.voice);
    return options;
}

int run(const Arguments& arguments) {
    Client client;
    client.model.reset(moshi_load(arguments.folder.c_str(), nullptr, nullptr));
    if (!client.model) throw std::runtime_error(moshi_error());
    client.info.size = sizeof client.info;
    check(moshi_describe(client.model.get(), &client.info));
    moshi_options options = choose(client, arguments);
    client.session.reset(moshi_session_new(client.model.get(), &options));
    if (!client.session) throw std::runtime_error(moshi_error());
    if (!arguments.restore.empty()) check(moshi_restore(client.session.get(), arguments.restore.c_str()));
    if (!arguments.live) return talk(client, arguments);
#ifdef MOSHI_LIVE
    return live(client, arguments);
#else
    throw UsageError("this moshi-cli was built without PortAudio, so it has no --live");
#endif
}

}  // namespace

bool interrupted() { return stopped != 0; }

int main(int count, char** values) {
    // Not by std::signal, after which a read goes on: a pipe in which nothing comes would be waited for all the same.
    struct sigaction stop {};
    stop.sa_handler = [](int) { stopped = 1; };
    sigaction(SIGINT, &stop, nullptr);
    sigaction(SIGTERM, &stop, nullptr);
    std::signal(SIGPIPE, SIG_IGN);
    moshi_set_log([](int32_t, const char* line, void*) { std::fprintf(stderr, "%s\n", line); }, nullptr);
    try {
        Arguments arguments = parse_arguments(count, values);
        if (arguments.help) {
            std::fputs(usage().c_str(), stdout);
            return 0;
        }
        return run(arguments);
    } catch (const UsageError& e) {
        std::fprintf(stderr, "%s\nmoshi-cli: %s\n", usage().c_str(), e.what());
        return 2;
    } catch (const std::exception& e) {
        // What a signal broke off, a write perhaps, is no error.
        if (interrupted()) return 130;
        std::fprintf(stderr, "error: %s\n", e.what());
        return 1;
    }
}
