"""CUDA C++ of the kernels' branches; `kernels.py` says what each computes.

A branch reads the arrays a to e, `sizes`, of which its own begin at 2, `numbers` and `key`, and
writes to `out`, or to `out` and `second`. `i` is the number of the thread, of `count`. Branches
that add up have a block of threads for each row. Arrays are fp32, or bf16 that is computed with as
fp32 and rounded once, when it is written.
"""

from __future__ import annotations

BRANCHES = {
    "leaky_relu": """
        float x = a[i] + b[i % sizes[2]];
        out[i] = x > 0 ? x : numbers[0] * x;
    """,
    "leaky_relu_gradient": """
        out[i] = a[i] * (b[i] > 0 ? 1.0f : numbers[0]) / sizes[2];
    """,
    "biased_sum": """
        out[i] = a[i] + (b[i] + c[i % sizes[2]]);
    """,
    "sum_and_leaky_relu_gradient": """
        out[i] = a[i] + b[i] * (c[i] > 0 ? 1.0f : numbers[0]);
    """,
    "mean": """
        float x = a[i];
        if (sizes[2] > 1) x += b[i];
        if (sizes[2] > 2) x += c[i];
        if (sizes[2] > 3) x += d[i];
        if (sizes[2] > 4) x += e[i];
        x /= sizes[2];
        out[i] = x > 0 ? x : numbers[0] * x;
    """,
    "gate": """
        int channels = sizes[2], row = i / channels, channel = i % channels;
        long at = long(row) * 2 * channels + channel;
        int of_clip = row / sizes[3] * 2 * channels + channel;
        float x = a[at] + b[channel] + c[of_clip];
        float y = a[at + channels] + b[channel + channels] + c[of_clip + channels];
        out[i] = tanhf(x) / (1 + expf(-y));
    """,
    "gate_gradient": """
        int channels = sizes[2], row = i / channels, channel = i % channels;
        long at = long(row) * 2 * channels + channel;
        int of_clip = row / sizes[3] * 2 * channels + channel;
        float x = tanhf(a[at] + b[channel] + c[of_clip]);
        float y = a[at + channels] + b[channel + channels] + c[of_clip + channels];
        y = 1 / (1 + expf(-y));
        out[at] = d[i] * y * (1 - x * x);
        out[at + channels] = d[i] * x * y * (1 - y);
    """,
    "attention": """
        int length = sizes[2], keys = sizes[3], reach = sizes[5];
        int row = blockIdx.x, query = row % length;
        long start = long(row) * keys;
        int step = sizes[6];
        long seen = step * (long(row / length / sizes[4]) * length + query) * keys;
        auto score = [&](int at) {
            int place = at - query + reach;
            float x = a[start + at];
            if (place >= 0 && place <= 2 * reach) x += b[long(row) * (2 * reach + 1) + place];
            return c[seen + at * step] == 0 ? numbers[0] : x;
        };
        float most = -3.4e38f;
        for (int at = threadIdx.x; at < keys; at += blockDim.x) most = fmaxf(most, score(at));
        most = most_of_block(most);
        float total = 0;
        for (int at = threadIdx.x; at < keys; at += blockDim.x) total += expf(score(at) - most);
        total = sum_of_block(total);
        for (int at = threadIdx.x; at < keys; at += blockDim.x)
            out[start + at] = expf(score(at) - most) / total;
    """,
    "widen": """
        int length = sizes[2], reach = sizes[3], row = i / length;
        int place = i % length - row % length + reach;
        bool is_near = place >= 0 && place <= 2 * reach;
        out[i] = is_near ? a[long(row) * (2 * reach + 1) + place] : 0.0f;
    """,
    "narrow": """
        int length = sizes[2], reach = sizes[3], row = i / (2 * reach + 1);
        int at = row % length + i % (2 * reach + 1) - reach;
        out[i] = at >= 0 && at < length ? a[long(row) * length + at] : 0.0f;
    """,
    "stacked": """
        int size = sizes[2];
        out[i] = i < size ? a[i] : i < 2 * size ? b[i - size] : c[i - 2 * size];
    """,
    "heads": """
        int length = sizes[2], heads = sizes[3], width = sizes[4], clips = sizes[5];
        int row = i / width, part = row / (length * heads * clips);
        int head = row / length % heads, clip = row / (length * heads) % clips;
        long from = (long(clip) * length + row % length) * 3 + part;
        out[i] = a[(from * heads + head) * width + i % width] * (part == 0 ? numbers[0] : 1.0f);
    """,
    "heads_gradient": """
        int length = sizes[2], heads = sizes[3], width = sizes[4];
        int row = i / width, head = row % heads, part = row / heads % 3, step = row / (3 * heads);
        long from = (long(step / length) * heads + head) * length + step % length;
        from = from * width + i % width;
        out[i] = part == 0 ? a[from] * numbers[0] : part == 1 ? b[from] : c[from];
    """,
    "windows": """
        int channels = sizes[2], kernel = sizes[3], length = sizes[4], steps = sizes[5];
        int tap = i / channels % kernel, row = i / channels / kernel;
        int at = row % steps * sizes[6] + tap * sizes[7] - sizes[8];
        bool is_inside = at >= 0 && at < length;
        out[i] = is_inside ? a[(long(row / steps) * length + at) * channels + i % channels] : 0.0f;
    """,
    "dropout": """
        unsigned middle = (unsigned(count) + 1) / 2, place = i;
        unsigned x = place < middle ? place : place - middle, y = x + middle;
        if (y == unsigned(count)) y = 0;
        unsigned of_x = key[0], of_y = key[1];
        unsigned keys[3] = {of_x, of_y, of_x ^ of_y ^ 0x1BD11BDA};
        const int turns[8] = {13, 15, 26, 6, 17, 29, 16, 24};
        x += keys[0];
        y += keys[1];
        for (int lap = 0; lap < 5; ++lap) {
            for (int turn = 0; turn < 4; ++turn) {
                int by = turns[lap % 2 * 4 + turn];
                x += y;
                y = ((y << by) | (y >> (32 - by))) ^ x;
            }
            x += keys[(lap + 1) % 3];
            y += keys[(lap + 2) % 3] + lap + 1;
        }
        bool is_kept = float(place < middle ? x : y) < numbers[0];
        float scale = is_kept ? b[i / sizes[2] * sizes[3]] * numbers[1] : 0.0f;
        out[i] = c[i % sizes[4]] + (a[i] + d[i % sizes[5]]) * scale;
    """,
}

# Of the kernel that writes two arrays.
BRANCHES_APART = {
    "sum_and_leaky_relu": """
        float x = a[i % sizes[3]] + (b[i] + c[i % sizes[2]]);
        out[i] = x;
        second[i] = x > 0 ? x : numbers[0] * x;
    """,
    "residual": """
        int channels = sizes[2], row = i / channels;
        long at = long(row) * 2 * channels + i % channels;
        out[i] = (a[i] + b[at]) * c[row * sizes[4]];
        second[i] = d[i % sizes[3]] + b[at + channels];
    """,
    "residual_gradient": """
        int channels = sizes[2], row = i / channels;
        long at = long(row) * 2 * channels + i % channels;
        float x = a[i] * c[row * sizes[3]];
        out[at] = x;
        out[at + channels] = b[i];
        second[i] = x;
    """,
    "attention_gradient": """
        int length = sizes[2], keys = sizes[3], reach = sizes[5];
        int row = blockIdx.x, query = row % length;
        long start = long(row) * keys;
        int step = sizes[6];
        long seen = step * (long(row / length / sizes[4]) * length + query) * keys;
        long band = long(row) * (2 * reach + 1);
        float total = 0;
        for (int at = threadIdx.x; at < keys; at += blockDim.x)
            total += a[start + at] * b[start + at];
        total = sum_of_block(total);
        for (int at = threadIdx.x; at < keys; at += blockDim.x) {
            bool is_seen = c[seen + at * step] != 0;
            float x = is_seen ? b[start + at] * (a[start + at] - total) : 0.0f;
            int place = at - query + reach;
            out[start + at] = x;
            if (place >= 0 && place <= 2 * reach) second[band + place] = x;
        }
        for (int place = threadIdx.x; place <= 2 * reach; place += blockDim.x) {
            int at = query + place - reach;
            if (at < 0 || at >= keys) second[band + place] = 0.0f;
        }
    """,
}

# Elements of either type as numbers.
ACCESS = """
template <typename T> struct Reader {
    const T* from;
    __device__ float operator[](long i) const { return float(from[i]); }
};
template <typename T> struct Place {
    T* to;
    __device__ void operator=(float x) const { *to = T(x); }
};
template <typename T> struct Writer {
    T* to;
    __device__ Place<T> operator[](long i) const { return Place<T>{to + i}; }
};
template <typename T> __device__ Reader<T> reading(const T* from) { return Reader<T>{from}; }
template <typename T> __device__ Writer<T> writing(T* to) { return Writer<T>{to}; }
"""

# The sum of one number of each thread of a block; all threads get the result.
SUM_OF_BLOCK = """
__device__ inline float sum_of_block(float x) {
    __shared__ float sums[32];
    __syncthreads();
    for (int step = 16; step > 0; step /= 2) x += __shfl_down_sync(0xffffffff, x, step);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
    __syncthreads();
    float total = 0;
    for (int warp = 0; warp < blockDim.x / 32; ++warp) total += sums[warp];
    return total;
}
"""

# The largest, likewise. To be called once in a kernel: nothing keeps a second call from writing
# what a slow thread of the first still reads.
MOST_OF_BLOCK = """
__device__ inline float most_of_block(float x) {
    __shared__ float found[32];
    for (int step = 16; step > 0; step /= 2)
        x = fmaxf(x, __shfl_down_sync(0xffffffff, x, step));
    if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = x;
    __syncthreads();
    float most = found[0];
    for (int warp = 1; warp < blockDim.x / 32; ++warp) most = fmaxf(most, found[warp]);
    return most;
}
"""

HEADER = ACCESS + SUM_OF_BLOCK + MOST_OF_BLOCK
