// MLX's wheel for Linux multiplies with the reference BLAS. This library comes before it where symbols are looked up, so that its products of
// float32 matrices run in OpenBLAS, which the Python package scipy-openblas32 brings under names of its own.
#include <cstdlib>

extern "C" {

void scipy_cblas_sgemm(int order, int transpose_a, int transpose_b, int m, int n, int k, float alpha, const float* a, int lda, const float* b, int ldb,
                       float beta, float* c, int ldc);
void scipy_openblas_set_num_threads(int);

__attribute__((visibility("default"))) void cblas_sgemm(int order, int transpose_a, int transpose_b, int m, int n, int k, float alpha, const float* a,
                                                        int lda, const float* b, int ldb, float beta, float* c, int ldc) {
    scipy_cblas_sgemm(order, transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

}

namespace {

// A second thread that waits for a busy core makes every product wait with it.
const struct OneThread {
    OneThread() {
        if (!std::getenv("OPENBLAS_NUM_THREADS")) scipy_openblas_set_num_threads(1);
    }
} one_thread;

}  // namespace
