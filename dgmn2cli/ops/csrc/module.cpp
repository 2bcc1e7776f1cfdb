// The Python face of the kernels: `dgmn2cli.ops._kernels`, addresses and sizes in, nothing checked here.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "run.h"

namespace {

using dgmn2::index;

// Reads a call's arguments, all whole numbers, in order.
class Arguments {
  public:
    explicit Arguments(PyObject* tuple) : tuple_(tuple) {}
    index number() {
        PyObject* item = PyTuple_GetItem(tuple_, next_++);
        return item == nullptr ? 0 : PyLong_AsSsize_t(item);
    }
    template <class T>
    T* address() {
        return reinterpret_cast<T*>(number());
    }
    bool complete() const {
        if (PyErr_Occurred()) return false;
        if (next_ == PyTuple_Size(tuple_)) return true;
        PyErr_SetString(PyExc_TypeError, "wrong number of arguments");
        return false;
    }

  private:
    PyObject* tuple_;
    Py_ssize_t next_ = 0;
};

// None, or the error that the threads of the last loop ended with.
PyObject* finished() {
    if (!dgmn2::threads_failed) Py_RETURN_NONE;
    dgmn2::threads_failed = false;
    PyErr_SetString(PyExc_RuntimeError, "torch could not start its threads");
    return nullptr;
}

enum Format { float32 = 0, float64 = 1, bfloat16 = 2 };

template <class T>
PyObject* unfold(Arguments& args, int threads, bool backward) {
    using A = dgmn2::accumulate<T>;
    dgmn2::Unfold<T> p{};
    p.input = args.address<T>();
    p.offset = args.address<A>();
    if (backward) {
        p.grad = args.address<T>();
        p.grad_input = args.address<A>();
        p.grad_offset = args.address<A>();
    } else {
        p.output = args.address<T>();
    }
    for (index* size : {&p.batch, &p.channels, &p.height, &p.width, &p.groups, &p.out_height, &p.out_width, &p.kernel_h,
                        &p.kernel_w, &p.stride_h, &p.stride_w, &p.pad_h, &p.pad_w, &p.dilation_h, &p.dilation_w})
        *size = args.number();
    if (!args.complete()) return nullptr;
    Py_BEGIN_ALLOW_THREADS
    if (backward)
        dgmn2::unfold_backward(p, threads);
    else
        dgmn2::unfold_forward(p, threads);
    Py_END_ALLOW_THREADS
    return finished();
}

template <class T>
PyObject* attention(Arguments& args, int threads, dgmn2::Isa isa, bool backward) {
    using A = dgmn2::accumulate<T>;
    dgmn2::Attention<T> p{};
    p.qkv = args.address<T>();
    p.offset = args.address<A>();
    p.height = args.address<A>();
    p.width = args.address<A>();
    p.zeros = args.address<T>();
    p.held = args.address<A>();
    if (backward) {
        p.grad = args.address<T>();
        for (A** to : {&p.grad_qkv, &p.grad_offset, &p.grad_height, &p.grad_width, &p.share, &p.slope, &p.grad_held})
            *to = args.address<A>();
        p.records = args.address<dgmn2::Record<A>>();
        p.ends = args.address<std::int32_t>();
        p.part_height = args.address<A>();
        p.part_width = args.address<A>();
    } else {
        p.out = args.address<T>();
    }
    for (index* size : {&p.batch, &p.rows, &p.columns, &p.heads, &p.depth, &p.batch_stride, &p.token_stride,
                        &p.part_stride, &p.head_stride})
        *size = args.number();
    if (!args.complete()) return nullptr;
    Py_BEGIN_ALLOW_THREADS
    if (backward)
        dgmn2::attention_backward(p, isa, threads);
    else
        dgmn2::attention_forward(p, isa, threads);
    Py_END_ALLOW_THREADS
    return finished();
}

template <class T>
PyObject* upsampled(Arguments& args, int threads, dgmn2::Isa isa) {
    using A = dgmn2::accumulate<T>;
    dgmn2::Upsampled<T> p{};
    p.products = args.address<T>();
    p.ring = args.address<A>();
    p.out = args.address<T>();
    p.bias = args.address<A>();
    for (dgmn2::ResizedAxis<A>* axis : {&p.down, &p.across}) {
        axis->upper = args.address<std::int32_t>();
        axis->weight = args.address<A>();
        axis->from = args.number();
        axis->to = args.number();
    }
    for (index* size : {&p.channels, &p.rows, &p.first_row, &p.ring_rows, &p.out_rows, &p.first_out, &p.relu})
        *size = args.number();
    if (!args.complete()) return nullptr;
    Py_BEGIN_ALLOW_THREADS
    dgmn2::upsampled_rows(p, isa, threads);
    Py_END_ALLOW_THREADS
    return finished();
}

PyObject* run_unfold(PyObject* tuple, bool backward) {
    Arguments args(tuple);
    const index format = args.number();
    const int threads = int(args.number());
    if (format == float64) return unfold<double>(args, threads, backward);
    if (format == bfloat16) return unfold<dgmn2::bfloat16>(args, threads, backward);
    return unfold<float>(args, threads, backward);
}

PyObject* run_attention(PyObject* tuple, bool backward) {
    Arguments args(tuple);
    const index format = args.number();
    const int threads = int(args.number());
    const auto isa = dgmn2::Isa(args.number());
    if (format == float64) return attention<double>(args, threads, isa, backward);
    if (format == bfloat16) return attention<dgmn2::bfloat16>(args, threads, isa, backward);
    return attention<float>(args, threads, isa, backward);
}

PyObject* upsampled_rows(PyObject*, PyObject* tuple) {
    Arguments args(tuple);
    const index format = args.number();
    const int threads = int(args.number());
    const auto isa = dgmn2::Isa(args.number());
    if (format == float64) return upsampled<double>(args, threads, isa);
    if (format == bfloat16) return upsampled<dgmn2::bfloat16>(args, threads, isa);
    return upsampled<float>(args, threads, isa);
}

PyObject* unfold_forward(PyObject*, PyObject* tuple) { return run_unfold(tuple, false); }
PyObject* unfold_backward(PyObject*, PyObject* tuple) { return run_unfold(tuple, true); }
PyObject* attention_forward(PyObject*, PyObject* tuple) { return run_attention(tuple, false); }
PyObject* attention_backward(PyObject*, PyObject* tuple) { return run_attention(tuple, true); }

PyObject* best_isa(PyObject*, PyObject*) { return PyLong_FromLong(long(dgmn2::best_isa())); }

// Asks the system to back an allocation with large pages: a buffer of many megabytes is then touched for the first time
// far more cheaply. Only advice; nothing depends on whether it is taken.
PyObject* advise_large_pages(PyObject*, PyObject* tuple) {
    Arguments args(tuple);
    const auto address = std::uintptr_t(args.number());
    const auto size = std::uintptr_t(args.number());
    if (!args.complete()) return nullptr;
#if defined(MADV_HUGEPAGE)
    const std::uintptr_t page = std::uintptr_t(1) << 21;
    const std::uintptr_t first = (address + page - 1) / page * page, last = (address + size) / page * page;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
    (void)address, (void)size;
#endif
    Py_RETURN_NONE;
}

// Takes the address of libtorch's `torch_parallel_for`, 0 for none.
PyObject* use_threads(PyObject*, PyObject* tuple) {
    Arguments args(tuple);
    const auto address = reinterpret_cast<dgmn2::ParallelFor>(args.number());
    if (!args.complete()) return nullptr;
    dgmn2::parallel_for = address;
    Py_RETURN_NONE;
}

PyMethodDef METHODS[] = {
    {"use_threads", use_threads, METH_VARARGS, "Runs loops by the function at this address; 0: serially."},
    {"best_isa", best_isa, METH_NOARGS, "Level of the best instruction set this machine runs."},
    {"advise_large_pages", advise_large_pages, METH_VARARGS, "Asks for large pages behind an allocation."},
    {"unfold_forward", unfold_forward, METH_VARARGS, "deform_unfold."},
    {"unfold_backward", unfold_backward, METH_VARARGS, "Gradients of deform_unfold."},
    {"attention_forward", attention_forward, METH_VARARGS, "deform_attention."},
    {"attention_backward", attention_backward, METH_VARARGS, "Gradients of deform_attention."},
    {"upsampled_rows", upsampled_rows, METH_VARARGS, "Rows of a 3x3 convolution over an enlarged map."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_kernels", nullptr, 0, METHODS, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__kernels() { return PyModule_Create(&MODULE); }
