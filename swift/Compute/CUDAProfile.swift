#if canImport(Glibc)
import Glibc
#else
import Darwin
#endif

/// Time on the GPU by kernel, for PYDS4_CUDA_PROFILE: an event before and after each, no graphs.
final class CUDAProfile {
    private let driver: CUDADriver
    private var events: [CUDADriver.Handle] = []
    private var used = 0
    private var pending: [(kernel: GPUKernel, begin: CUDADriver.Handle, end: CUDADriver.Handle)] = []
    private var totals: [GPUKernel: (count: Int, milliseconds: Double)] = [:]
    private var begun: CUDADriver.Handle = nil

    init(_ driver: CUDADriver) { self.driver = driver }

    private func event() throws -> CUDADriver.Handle {
        if used == events.count {
            var event: CUDADriver.Handle = nil
            try driver.check(driver.eventCreate(&event, 0), "making an event")
            events.append(event)
        }
        used += 1
        return events[used - 1]
    }

    func begin(_ stream: CUDADriver.Handle) throws {
        begun = try event()
        try driver.check(driver.eventRecord(begun, stream), "recording an event")
    }

    func end(_ kernel: GPUKernel, _ stream: CUDADriver.Handle) throws {
        let end = try event()
        try driver.check(driver.eventRecord(end, stream), "recording an event")
        pending.append((kernel, begun, end))
    }

    /// The stream is idle: adds up what has been timed.
    func collect() {
        for (kernel, begin, end) in pending {
            var milliseconds: Float = 0
            guard driver.eventTime(&milliseconds, begin, end) == 0 else { continue }
            totals[kernel, default: (0, 0)].count += 1
            totals[kernel, default: (0, 0)].milliseconds += Double(milliseconds)
        }
        pending.removeAll(keepingCapacity: true)
        used = 0
    }

    func report() {
        for (kernel, total) in totals.sorted(by: { $0.value.milliseconds > $1.value.milliseconds }) {
            let microseconds = Int(total.milliseconds * 1000)
            let line = "\(kernel.name): \(total.count) × \(microseconds / max(total.count, 1)) us = \(microseconds) us\n"
            _ = line.withCString { write(STDERR_FILENO, $0, strlen($0)) }
        }
    }
}
