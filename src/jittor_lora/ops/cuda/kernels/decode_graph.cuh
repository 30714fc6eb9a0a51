// Many small kernels as one CUDA graph: the GPU starts the next one itself, sooner than the CPU could.
#pragma once
#include <vector>

#include "device.cuh"

namespace jl::decoding {

#ifdef __CUDACC__

constexpr int GRAPHS = 16;  // that are kept

// Calls `start`, which starts kernels on `stream()`. If it was called with this key before, they are recorded as a graph
// instead, and from then on it is the graph that runs. The key has all that the kernels' arguments depend on.
template <class Start>
void replay(std::vector<unsigned char> key, Start start) {
    struct Kept {
        std::vector<unsigned char> key;
        cudaGraphExec_t graph;  // null until the second call
    };
    static std::vector<Kept> all;  // the latest last
    static bool works = true;      // else as if there were none
    if (!works) return start();
    Kept kept{std::move(key), nullptr};
    bool is_known = false;
    for (size_t i = 0; i < all.size() && !is_known; i++)
        if (all[i].key == kept.key) {
            is_known = true;
            kept.graph = all[i].graph;
            all.erase(all.begin() + i);
        }
    if (is_known && !kept.graph) {
        cudaStream_t recording;
        works = cudaStreamCreateWithFlags(&recording, cudaStreamNonBlocking) == cudaSuccess;
        if (works) {
            cudaGraph_t graph = nullptr;
            works = cudaStreamBeginCapture(recording, cudaStreamCaptureModeRelaxed) == cudaSuccess;
            if (works) {
                stream() = recording;
                try {
                    start();
                } catch (const std::runtime_error&) {
                    works = false;
                }
                stream() = nullptr;
                works &= cudaStreamEndCapture(recording, &graph) == cudaSuccess && graph;
                works = works && cudaGraphInstantiateWithFlags(&kept.graph, graph, 0) == cudaSuccess;
                if (graph) cudaGraphDestroy(graph);
            }
            cudaStreamDestroy(recording);
        }
        cudaGetLastError();  // forget why it does not work: the kernels can be started one by one
    }
    if (kept.graph) {
        check(cudaGraphLaunch(kept.graph, nullptr), "graph");
        launches()++;
    } else {
        start();
    }
    all.push_back(std::move(kept));
    if (all.size() <= GRAPHS) return;
    if (all.front().graph) cudaGraphExecDestroy(all.front().graph);
    all.erase(all.begin());
}

#else

template <class Start>
void replay(const std::vector<unsigned char>&, Start start) { start(); }

#endif

}  // namespace jl::decoding
