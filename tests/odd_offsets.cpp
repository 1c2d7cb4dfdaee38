// An allocator for torch's CPU tensors whose addresses are multiples of 8 bytes and never of 64.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

constexpr std::size_t kAlignment = 64;  // of torch's own allocator
constexpr std::size_t kStep = 8;        // of the widest element

std::atomic<std::uint32_t> allocations{0};

// The address of the block from `malloc` is stored before the data.
void release(void* data) {
  if (data == nullptr) return;
  void* block;
  std::memcpy(&block, static_cast<char*>(data) - sizeof block, sizeof block);
  std::free(block);
}

struct OddOffsets final : c10::Allocator {
  c10::DataPtr allocate(std::size_t size) override {
    const c10::Device cpu(c10::DeviceType::CPU);
    if (size == 0) return {nullptr, nullptr, &release, cpu};
    void* block = std::malloc(size + 3 * kAlignment);
    if (block == nullptr) throw std::bad_alloc();
    // Knuth's multiplicative hash: different places, the same ones in every run.
    const std::size_t place = 1 + (allocations++ * 2654435761u >> 16) % (kAlignment / kStep - 1);
    const auto first = reinterpret_cast<std::uintptr_t>(block) + 2 * kAlignment - 1;
    char* data = reinterpret_cast<char*>(first - first % kAlignment + place * kStep);
    std::memcpy(data - sizeof block, &block, sizeof block);
    return {data, data, &release, cpu};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* target, const void* source, std::size_t size) const override {
    std::memcpy(target, source, size);
  }
};

OddOffsets odd_offsets;

}  // namespace

extern "C" void place_at_odd_offsets(bool odd) {
  c10::Allocator* allocator = odd ? static_cast<c10::Allocator*>(&odd_offsets) : c10::GetDefaultCPUAllocator();
  c10::SetCPUAllocator(allocator, /*priority=*/1);
}
