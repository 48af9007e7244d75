// The header in C++11.
#include "moshi.h"

int main() { return moshi_abi() == MOSHI_ABI ? 0 : 1; }
