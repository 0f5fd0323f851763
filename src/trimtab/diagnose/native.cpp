// The compiled hooks: a c10d back end that stands before the real one, forwards everything, and writes the records of
// `frame.py` as it does so. `native.py` compiles this, and puts it in place; it also answers what is new (call sites,
// signatures, directions between ranks), once each.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <unordered_map>

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/utils/pybind.h>
#include <pybind11/functional.h>
#include <pybind11/stl.h>

namespace {

namespace py = pybind11;
using c10d::Backend;
using c10d::Work;
using Tensors = std::vector<at::Tensor>;
using WorkPtr = c10::intrusive_ptr<Work>;

// as in frame.py
enum Op : uint32_t {
  kUnknown, kAllReduce, kAllGather, kReduceScatter, kAllToAll, kBroadcast, kReduce, kGather, kScatter, kBarrier, kSend,
  kRecv, kCoalesced
};
constexpr uint32_t kAsync = 1, kAwaited = 2, kFailed = 4, kNoPeer = 0xFFFFFFFF;
constexpr size_t kMaxCached = 8192;

uint64_t now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return uint64_t(t.tv_sec) * 1000000000u + uint64_t(t.tv_nsec);
}

uint64_t mix(uint64_t hash, uint64_t value) {
  hash ^= value + 0x9E3779B97F4A7C15u + (hash << 6) + (hash >> 2);
  return hash * 0xD6E8FEB86659FD93u;
}

struct Record {
  uint32_t stamp, what;
  uint64_t seq, enter, exit, num_bytes;
  uint32_t signature, site, step, peer, waited, check;
};
static_assert(sizeof(Record) == 64);

struct Frame {
  uint64_t uid, seq, record, done, exit;
  uint32_t rest[6];
};
static_assert(sizeof(Frame) == 64);

// What is known of this thread's Python frames, without Python's lock: nobody else changes them while it is here.
// Only for the version whose layout this is; others ask Python itself, which takes its lock.
#if PY_VERSION_HEX >= 0x030B0000 && PY_VERSION_HEX < 0x030C0000
struct RawFrame {
  void *function, *globals, *builtins, *locals, *code, *object;
  RawFrame *previous;
  void *instruction;
};

bool raw_place(uint64_t& hash) {
  PyThreadState *state = PyGILState_GetThisThreadState();
  if (state == nullptr || state->cframe == nullptr) {
    return false;
  }
  auto *frame = reinterpret_cast<RawFrame *>(state->cframe->current_frame);
  for (int depth = 0; frame != nullptr && depth < 12; ++depth, frame = frame->previous) {
    hash = mix(mix(hash, reinterpret_cast<uint64_t>(frame->code)), reinterpret_cast<uint64_t>(frame->instruction));
  }
  return true;
}
#else
bool raw_place(uint64_t&) { return false; }
#endif

bool locked_place(uint64_t& hash) {
  if (PyGILState_GetThisThreadState() == nullptr || !Py_IsInitialized()) {
    return false;
  }
  py::gil_scoped_acquire lock;
  PyFrameObject *frame = PyEval_GetFrame();
  Py_XINCREF(frame);
  for (int depth = 0; frame != nullptr && depth < 12; ++depth) {
    PyCodeObject *code = PyFrame_GetCode(frame);
    hash = mix(mix(hash, reinterpret_cast<uint64_t>(code)), uint64_t(PyFrame_GetLasti(frame)));
    Py_DECREF(code);
    PyFrameObject *back = PyFrame_GetBack(frame);
    Py_DECREF(frame);
    frame = back;
  }
  Py_XDECREF(frame);
  return true;
}

// The file of a rank, mapped once more, so that it stays as long as anything writes to it.
class Recorder {
 public:
  Recorder(const std::string& path, uint64_t ring_at, uint64_t capacity, uint64_t frames_at, uint64_t max_communicators,
           bool raw_frames, py::object asked)
      : mask_(capacity - 1), raw_frames_(raw_frames), asked_(new py::object(std::move(asked))),
        counts_(new Counts[max_communicators]) {
    int file = open(path.c_str(), O_RDWR | O_CLOEXEC);
    TORCH_CHECK(file >= 0, "cannot open ", path, ": ", std::strerror(errno));
    size_ = ring_at + capacity * sizeof(Record);
    struct stat found {};
    bool fits = fstat(file, &found) == 0 && uint64_t(found.st_size) >= size_;
    void *at = fits ? mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) : MAP_FAILED;
    close(file);
    TORCH_CHECK(at != MAP_FAILED, "cannot map ", path);
    base_ = static_cast<uint8_t *>(at);
    ring_ = reinterpret_cast<Record *>(base_ + ring_at);
    frames_ = reinterpret_cast<Frame *>(base_ + frames_at);
  }

  ~Recorder() {
    munmap(base_, size_);
    if (Py_IsInitialized()) {
      py::gil_scoped_acquire lock;
      delete asked_;
    }
  }

  void set_step(uint64_t step) { step_.store(uint32_t(step)); }
  void add_waited(uint64_t microseconds) { waited_.fetch_add(uint32_t(microseconds)); }
  void stop() { on_.store(false); }
  bool is_on() const { return on_.load(std::memory_order_relaxed); }

  uint64_t enter(uint32_t communicator, uint32_t op, uint32_t flags, uint64_t bytes, uint32_t signature, uint32_t site,
                 uint32_t peer) {
    uint64_t number = latest_.fetch_add(1) + 1;
    uint64_t seq = counts_[communicator].seq.fetch_add(1) + 1;
    Record& record = ring_[number & mask_];
    uint32_t stamp = uint32_t(number);
    store(record.stamp, stamp);
    std::atomic_thread_fence(std::memory_order_release);
    record.what = communicator | op << 16 | flags << 24;
    record.seq = seq;
    record.enter = now();
    record.exit = 0;
    record.num_bytes = bytes;
    record.signature = signature;
    record.site = site;
    record.step = step_.load(std::memory_order_relaxed);
    record.peer = peer;
    record.waited = waited_.exchange(0, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_release);
    store(record.check, stamp);
    frames_[communicator].seq = seq;
    frames_[communicator].record = number;
    return number;
  }

  void leave(uint32_t communicator, uint64_t number) {
    if (!is_on()) {
      return;
    }
    uint64_t time = now();
    if (latest_.load() - number <= mask_) {
      store(ring_[number & mask_].exit, time);
    }
    store(frames_[communicator].done, counts_[communicator].done.fetch_add(1) + 1);
    frames_[communicator].exit = time;
  }

  void flag(uint64_t number, uint32_t bits) {
    if (is_on() && latest_.load() - number <= mask_) {
      ring_[number & mask_].what |= bits << 24;
    }
  }

  uint32_t signature(uint32_t op, int type, int64_t elements, int64_t root, int reduce_op) {
    uint64_t key = mix(mix(mix(op, uint64_t(type + 1)), uint64_t(elements)), uint64_t(root + 1) << 8 | uint64_t(reduce_op + 1));
    return cached(signatures_, key, "signature", int(op), type < 0 ? "" : c10::toString(at::ScalarType(type)), elements,
                  root, reduce_op);
  }

  uint32_t site() {
    uint64_t key = 1;
    if (!(raw_frames_ ? raw_place(key) || locked_place(key) : locked_place(key))) {
      return 0;  // a thread that has no Python
    }
    return cached(sites_, key, "site");
  }

  int edge(const std::string& group, int peer, bool is_send) {
    py::gil_scoped_acquire lock;
    return asked_->attr("edge")(group, peer, is_send).cast<int>();
  }

  void lost() {
    py::gil_scoped_acquire lock;
    asked_->attr("lost")();
  }

  // An error in here must not reach the job: recording ends.
  void failed(const char *what) {
    bool was_on = on_.exchange(false);
    if (was_on && Py_IsInitialized()) {
      py::gil_scoped_acquire lock;
      try {
        asked_->attr("failed")(what);
      } catch (py::error_already_set& error) {
        error.discard_as_unraisable("trimtab.diagnose");
      }
    }
  }

 private:
  struct Counts {
    std::atomic<uint64_t> seq{0}, done{0};
  };

  template <typename T>
  static void store(T& target, T value) {
    __atomic_store_n(&target, value, __ATOMIC_RELEASE);
  }

  template <typename... Arguments>
  uint32_t cached(std::unordered_map<uint64_t, uint32_t>& map, uint64_t key, const char *name, Arguments... arguments) {
    {
      std::lock_guard<std::mutex> guard(mutex_);
      auto found = map.find(key);
      if (found != map.end()) {
        return found->second;
      }
    }
    uint32_t value;
    {
      py::gil_scoped_acquire lock;  // never while the mutex is held
      value = asked_->attr(name)(arguments...).template cast<uint32_t>();
    }
    std::lock_guard<std::mutex> guard(mutex_);
    if (map.size() > kMaxCached) {
      map.clear();
    }
    return map[key] = value;
  }

  uint8_t *base_;
  size_t size_;
  uint64_t mask_;
  Record *ring_;
  Frame *frames_;
  bool raw_frames_;
  py::object *asked_;
  std::unique_ptr<Counts[]> counts_;
  std::atomic<bool> on_{true};
  std::atomic<uint64_t> latest_{0};
  std::atomic<uint32_t> step_{0}, waited_{0};
  std::mutex mutex_;
  std::unordered_map<uint64_t, uint32_t> signatures_, sites_;
};

using RecorderPtr = std::shared_ptr<Recorder>;

// A work whose waiting is seen. `ends` says that its end is seen here, too, and not by a future.
class WatchedWork : public Work {
 public:
  WatchedWork(WorkPtr work, RecorderPtr recorder, uint32_t communicator, uint64_t number, bool ends)
      : Work(-1, work->retrieveOpType()), work_(std::move(work)), recorder_(std::move(recorder)),
        communicator_(communicator), number_(number), is_open_(ends) {}
  ~WatchedWork() override { end(); }  // dropped: it counts as done

  bool isCompleted() override {
    bool done = work_->isCompleted();
    if (done) {
      end();
    }
    return done;
  }
  bool wait(std::chrono::milliseconds timeout) override {
    recorder_->flag(number_, kAwaited);
    bool done;
    try {
      done = work_->wait(timeout);
    } catch (...) {
      if (is_open_.exchange(false)) {
        recorder_->flag(number_, kFailed);
      }
      throw;
    }
    end();
    return done;
  }
  bool isSuccess() const override { return work_->isSuccess(); }
  std::exception_ptr exception() const override { return work_->exception(); }
  int sourceRank() const override { return work_->sourceRank(); }
  Tensors result() override { return work_->result(); }
  void synchronize() override { work_->synchronize(); }
  void blockCurrentStream() override { work_->blockCurrentStream(); }
  void abort() override { work_->abort(); }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return work_->getFuture(); }
  c10::intrusive_ptr<c10::ivalue::Future> getFutureResult() override { return work_->getFutureResult(); }
  float getDuration() const override { return work_->getDuration(); }
  uint64_t getSequencenumber() const override { return work_->getSequencenumber(); }

 private:
  void end() {
    if (is_open_.exchange(false)) {
      recorder_->leave(communicator_, number_);
    }
  }

  WorkPtr work_;
  RecorderPtr recorder_;
  uint32_t communicator_;
  uint64_t number_;
  std::atomic<bool> is_open_;
};

int64_t elements(const Tensors& tensors) {
  int64_t sum = 0;
  for (const auto& tensor : tensors) {
    sum += tensor.numel();
  }
  return sum;
}

int64_t bytes(const Tensors& tensors) {
  int64_t sum = 0;
  for (const auto& tensor : tensors) {
    sum += tensor.numel() * int64_t(tensor.element_size());
  }
  return sum;
}

class ProbedBackend : public Backend {
 public:
  ProbedBackend(c10::intrusive_ptr<Backend> inner, RecorderPtr recorder, int communicator, std::string group,
                std::vector<int64_t> ranks)
      : Backend(inner->getRank(), inner->getSize()), inner_(std::move(inner)), recorder_(std::move(recorder)),
        communicator_(communicator), group_(std::move(group)), ranks_(std::move(ranks)), edges_(2 * ranks_.size(), -2) {
    pg_uid_ = inner_->getGroupUid();
    pg_desc_ = inner_->getGroupDesc();
  }

  // For another recorder; nothing may be under way.
  void rearm(RecorderPtr recorder, int communicator) {
    recorder_ = std::move(recorder);
    communicator_ = communicator;
    std::fill(edges_.begin(), edges_.end(), -2);
  }

  WorkPtr broadcast(Tensors& tensors, const c10d::BroadcastOptions& opts) override {
    return seen(kBroadcast, tensors, rank_of(opts.rootRank), -1, opts.asyncOp, [&] { return inner_->broadcast(tensors, opts); });
  }
  WorkPtr allreduce(Tensors& tensors, const c10d::AllreduceOptions& opts) override {
    return seen(kAllReduce, tensors, -1, reduce(opts.reduceOp), opts.asyncOp, [&] { return inner_->allreduce(tensors, opts); });
  }
  WorkPtr allreduce_sparse(Tensors& tensors, const c10d::AllreduceOptions& opts) override {
    return seen(kAllReduce, Tensors{}, -1, reduce(opts.reduceOp), opts.asyncOp, [&] { return inner_->allreduce_sparse(tensors, opts); });
  }
  WorkPtr allreduce_coalesced(Tensors& tensors, const c10d::AllreduceCoalescedOptions& opts) override {
    return seen(kCoalesced, tensors, -1, reduce(opts.reduceOp), opts.asyncOp, [&] { return inner_->allreduce_coalesced(tensors, opts); });
  }
  WorkPtr reduce(Tensors& tensors, const c10d::ReduceOptions& opts) override {
    return seen(kReduce, tensors, rank_of(opts.rootRank), reduce(opts.reduceOp), opts.asyncOp, [&] { return inner_->reduce(tensors, opts); });
  }
  WorkPtr allgather(std::vector<Tensors>& outputs, Tensors& inputs, const c10d::AllgatherOptions& opts) override {
    bool is_even = true;
    for (const auto& list : outputs) {
      for (const auto& tensor : list) {
        is_even = is_even && tensor.numel() == list[0].numel();
      }
    }
    return seen(kAllGather, inputs, -1, -1, opts.asyncOp, [&] { return inner_->allgather(outputs, inputs, opts); }, is_even);
  }
  WorkPtr _allgather_base(at::Tensor& output, at::Tensor& input, const c10d::AllgatherOptions& opts) override {
    return seen(kAllGather, input, -1, -1, opts.asyncOp, [&] { return inner_->_allgather_base(output, input, opts); });
  }
  WorkPtr allgather_coalesced(std::vector<Tensors>& outputs, Tensors& inputs, const c10d::AllgatherOptions& opts) override {
    return seen(kCoalesced, inputs, -1, -1, opts.asyncOp, [&] { return inner_->allgather_coalesced(outputs, inputs, opts); });
  }
  WorkPtr allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs, const c10d::AllgatherOptions& opts) override {
    return seen(kCoalesced, inputs, -1, -1, opts.asyncOp, [&] { return inner_->allgather_into_tensor_coalesced(outputs, inputs, opts); });
  }
  WorkPtr gather(std::vector<Tensors>& outputs, Tensors& inputs, const c10d::GatherOptions& opts) override {
    return seen(kGather, inputs, rank_of(opts.rootRank), -1, opts.asyncOp, [&] { return inner_->gather(outputs, inputs, opts); });
  }
  WorkPtr scatter(Tensors& outputs, std::vector<Tensors>& inputs, const c10d::ScatterOptions& opts) override {
    return seen(kScatter, outputs, rank_of(opts.rootRank), -1, opts.asyncOp, [&] { return inner_->scatter(outputs, inputs, opts); });
  }
  WorkPtr reduce_scatter(Tensors& outputs, std::vector<Tensors>& inputs, const c10d::ReduceScatterOptions& opts) override {
    return seen(kReduceScatter, outputs, -1, reduce(opts.reduceOp), opts.asyncOp, [&] { return inner_->reduce_scatter(outputs, inputs, opts); });
  }
  WorkPtr _reduce_scatter_base(at::Tensor& output, at::Tensor& input, const c10d::ReduceScatterOptions& opts) override {
    return seen(kReduceScatter, output, -1, reduce(opts.reduceOp), opts.asyncOp, [&] { return inner_->_reduce_scatter_base(output, input, opts); });
  }
  WorkPtr reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs, const c10d::ReduceScatterOptions& opts) override {
    return seen(kCoalesced, outputs, -1, reduce(opts.reduceOp), opts.asyncOp, [&] { return inner_->reduce_scatter_tensor_coalesced(outputs, inputs, opts); });
  }
  WorkPtr alltoall_base(at::Tensor& output, at::Tensor& input, std::vector<int64_t>& output_sizes,
                        std::vector<int64_t>& input_sizes, const c10d::AllToAllOptions& opts) override {
    return seen(kAllToAll, input, -1, -1, opts.asyncOp, [&] { return inner_->alltoall_base(output, input, output_sizes, input_sizes, opts); }, false);
  }
  WorkPtr alltoall(Tensors& outputs, Tensors& inputs, const c10d::AllToAllOptions& opts) override {
    return seen(kAllToAll, inputs, -1, -1, opts.asyncOp, [&] { return inner_->alltoall(outputs, inputs, opts); }, false);
  }
  WorkPtr barrier(const c10d::BarrierOptions& opts) override {
    return seen(kBarrier, Tensors{}, -1, -1, opts.asyncOp, [&] { return inner_->barrier(opts); });
  }
  void monitoredBarrier(const c10d::BarrierOptions& opts, bool all) override {
    uint64_t number = begin(kBarrier, -1, 0, 0, -1, -1, false, communicator_, kNoPeer);
    try {
      inner_->monitoredBarrier(opts, all);
    } catch (...) {
      recorder_->flag(number, number ? kFailed : 0);
      throw;
    }
    if (number) {
      recorder_->leave(communicator_, number);
    }
  }
  WorkPtr send(Tensors& tensors, int peer, int tag) override {
    return passed(kSend, tensors, peer, [&] { return inner_->send(tensors, peer, tag); });
  }
  WorkPtr recv(Tensors& tensors, int peer, int tag) override {
    return passed(kRecv, tensors, peer, [&] { return inner_->recv(tensors, peer, tag); });
  }
  WorkPtr recvAnysource(Tensors& tensors, int tag) override {
    guarded([&] { recorder_->lost(); });  // nobody knows yet who will send
    return inner_->recvAnysource(tensors, tag);
  }

  bool supportsSplitting() const override { return inner_->supportsSplitting(); }
  bool supportsCoalescing() const override { return inner_->supportsCoalescing(); }
  bool supportsTimeEstimation() const override { return inner_->supportsTimeEstimation(); }
  bool supportsShrinking() const override { return inner_->supportsShrinking(); }
  c10::intrusive_ptr<Backend> shrink(const std::vector<int64_t>& ranks, int flags, const c10::intrusive_ptr<Options>& opts) override {
    return inner_->shrink(ranks, flags, opts);
  }
  void setTimeout(std::chrono::milliseconds timeout) override { inner_->setTimeout(timeout); }
  void startCoalescing() override { inner_->startCoalescing(); }
  WorkPtr endCoalescing() override { return inner_->endCoalescing(); }
  const std::string getBackendName() const override { return inner_->getBackendName(); }
  c10::intrusive_ptr<Options> getBackendOptions() override { return inner_->getBackendOptions(); }
  void setSequenceNumberForGroup() override { inner_->setSequenceNumberForGroup(); }
  uint64_t getSequenceNumberForGroup() override { return inner_->getSequenceNumberForGroup(); }
  void registerOnCompletionHook(std::function<void(std::shared_ptr<c10d::WorkInfo>)>&& hook) override {
    inner_->registerOnCompletionHook(std::move(hook));
  }
  void waitForPendingWorks() override { inner_->waitForPendingWorks(); }
  void enableCollectivesTiming() override { inner_->enableCollectivesTiming(); }
  c10::intrusive_ptr<Backend> split(const c10::intrusive_ptr<c10d::Store>& store, const std::vector<int>& ranks,
                                    const c10::intrusive_ptr<Options>& opts) override {
    return inner_->split(store, ranks, opts);
  }
  c10::intrusive_ptr<Backend> merge(const c10::intrusive_ptr<c10d::Store>& store, const c10::intrusive_ptr<Options>& opts,
                                    const int& rank, const int& size) override {
    return inner_->merge(store, opts, rank, size);
  }
  void setGroupUid(const std::string& uid) override {
    pg_uid_ = uid;
    inner_->setGroupUid(uid);
  }
  void eagerConnectSingleDevice(at::Device device) override { inner_->eagerConnectSingleDevice(device); }
  c10d::ErrorType getError() override { return inner_->getError(); }
  std::shared_ptr<c10::Allocator> getMemAllocator() override { return inner_->getMemAllocator(); }
  at::Tensor allocateTensor(long size, at::TensorOptions options) override { return inner_->allocateTensor(size, options); }
  bool supportsTensorAlloc(c10::DeviceIndex index) override { return inner_->supportsTensorAlloc(index); }
  void abort() override { inner_->abort(); }
  void shutdown() override { inner_->shutdown(); }
  void suspend() override { inner_->suspend(); }
  void resume() override { inner_->resume(); }
  std::unordered_map<std::string, uint64_t> getMemoryStats() override { return inner_->getMemoryStats(); }

 private:
  static int reduce(const c10d::ReduceOp& op) { return int(c10d::ReduceOp::RedOpType(op)); }
  int64_t rank_of(int64_t root) const { return root >= 0 && size_t(root) < ranks_.size() ? ranks_[root] : -1; }

  template <typename F>
  bool guarded(F work) {
    try {
      work();
      return true;
    } catch (const std::exception& error) {
      recorder_->failed(error.what());
      return false;
    }
  }

  // The number of the record; 0 where there is none.
  uint64_t begin(Op op, int type, int64_t size, int64_t num_bytes, int64_t root, int reduce_op, bool is_async,
                 int communicator, uint32_t peer) {
    uint64_t number = 0;
    if (!recorder_->is_on()) {
      return 0;
    }
    guarded([&] {
      if (communicator < 0) {
        recorder_->lost();
        return;
      }
      uint32_t signature = recorder_->signature(op, type, size, root, reduce_op);
      number = recorder_->enter(communicator, op, is_async ? kAsync : 0, num_bytes, signature, recorder_->site(), peer);
    });
    return number;
  }

  template <typename F>
  WorkPtr seen(Op op, const at::Tensor& tensor, int64_t root, int reduce_op, bool is_async, F call, bool is_even = true) {
    int64_t size = tensor.numel();
    return watched(begin(op, int(tensor.scalar_type()), is_even ? size : 0, size * int64_t(tensor.element_size()), root,
                         reduce_op, is_async, communicator_, root < 0 ? kNoPeer : uint32_t(root)),
                   is_async, call);
  }

  template <typename F>
  WorkPtr seen(Op op, const Tensors& tensors, int64_t root, int reduce_op, bool is_async, F call, bool is_even = true) {
    int type = tensors.empty() ? -1 : int(tensors[0].scalar_type());
    return watched(begin(op, type, is_even ? elements(tensors) : 0, bytes(tensors), root, reduce_op, is_async,
                         communicator_, root < 0 ? kNoPeer : uint32_t(root)),
                   is_async, call);
  }

  template <typename F>
  WorkPtr called(uint64_t number, int communicator, F call) {
    WorkPtr work;
    try {
      work = call();
    } catch (...) {
      recorder_->flag(number, kFailed);
      throw;
    }
    if (!work) {
      recorder_->leave(communicator, number);
    }
    return work;
  }

  template <typename F>
  WorkPtr watched(uint64_t number, bool is_async, F call) {
    if (!number) {
      return call();
    }
    WorkPtr work = called(number, communicator_, call);
    if (!work) {
      return work;
    }
    c10::intrusive_ptr<c10::ivalue::Future> future;
    try {
      future = work->getFuture();
    } catch (const std::exception&) {
      // this back end has none
    }
    if (future) {
      future->addCallback(
          [recorder = recorder_, communicator = uint32_t(communicator_), number](c10::ivalue::Future& ended) {
            if (ended.hasError()) {
              recorder->flag(number, kFailed);
            } else {
              recorder->leave(communicator, number);
            }
          },
          false);
      if (!is_async) {
        return work;
      }
    }
    return c10::make_intrusive<WatchedWork>(work, recorder_, communicator_, number, !future);
  }

  template <typename F>
  WorkPtr passed(Op op, const Tensors& tensors, int peer, F call) {
    int edge = -1;
    if (recorder_->is_on() && peer >= 0 && size_t(peer) < ranks_.size()) {
      int& known = edges_[2 * peer + (op == kSend)];
      if (known == -2) {
        guarded([&] { known = recorder_->edge(group_, peer, op == kSend); });
      }
      edge = known;
    }
    int type = tensors.empty() ? -1 : int(tensors[0].scalar_type());
    uint64_t number = begin(op, type, elements(tensors), bytes(tensors), -1, -1, true, edge, uint32_t(rank_of(peer)));
    if (!number) {
      return call();
    }
    WorkPtr work = called(number, edge, call);
    if (!work) {
      return work;
    }
    return c10::make_intrusive<WatchedWork>(work, recorder_, edge, number, true);
  }

  c10::intrusive_ptr<Backend> inner_;
  RecorderPtr recorder_;
  int communicator_;
  std::string group_;
  std::vector<int64_t> ranks_;
  std::vector<int> edges_;
};

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  py::class_<Recorder, RecorderPtr>(module, "Recorder")
      .def(py::init<const std::string&, uint64_t, uint64_t, uint64_t, uint64_t, bool, py::object>(), py::arg("path"),
           py::arg("ring_at"), py::arg("capacity"), py::arg("frames_at"), py::arg("max_communicators"),
           py::arg("raw_frames"), py::arg("asked"))
      .def("set_step", &Recorder::set_step)
      .def("add_waited", &Recorder::add_waited)
      .def("stop", &Recorder::stop);
  module.def("wrap", [](c10::intrusive_ptr<Backend> inner, RecorderPtr recorder, int communicator, std::string group,
                        std::vector<int64_t> ranks) -> c10::intrusive_ptr<Backend> {
    return c10::make_intrusive<ProbedBackend>(std::move(inner), std::move(recorder), communicator, std::move(group),
                                              std::move(ranks));
  });
  module.def("rearm", [](const c10::intrusive_ptr<Backend>& ours, RecorderPtr recorder, int communicator) {
    auto *probed = dynamic_cast<ProbedBackend *>(ours.get());
    TORCH_CHECK(probed != nullptr, "not one of ours");
    probed->rearm(std::move(recorder), communicator);
  });
}
