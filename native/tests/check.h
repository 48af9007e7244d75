// The least that a test needs: a condition, and where it did not hold.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

#define CHECK(condition)                                                                  \
    do {                                                                                  \
        if (!(condition)) {                                                               \
            std::fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
            std::exit(1);                                                                 \
        }                                                                                 \
    } while (false)

// The words of the exception that `work` throws; "" if it throws none.
template <class Work>
std::string thrown(const Work& work) {
    try {
        work();
    } catch (const std::exception& e) {
        return e.what();
    }
    return "";
}
