import Synchronization

/// A device's memory and its queue of commands that have not started yet.
///
/// Small buffers are cut from slabs, since devices allocate in megabytes, and freed ones are kept for the
/// next of their size. Reuse is safe because everything runs in order.
public final class GPUMemory: Memory, @unchecked Sendable {  // everything mutable is guarded by `lock`
    let device: any GPUDevice
    private let lock = Mutex(())
    private var commands = GPUCommands()
    private var freed: [Int: [UnsafeMutableRawPointer]] = [:]
    private var slab: (address: UnsafeMutableRawPointer, left: Int)?
    /// What went wrong where nothing could be thrown; thrown by the next `finish`.
    private var failure: (any Error)?

    private static let slabByteCount = 32 << 20
    private static let mostInSlab = 4 << 20

    init(_ device: any GPUDevice) { self.device = device }

    /// Sizes come in steps of an eighth, so that a freed buffer fits many later ones.
    private static func sizeClass(_ byteCount: Int) -> Int {
        let least = 256, wanted = max(byteCount, least)
        let step = max(least, (1 << (Int.bitWidth - 1 - wanted.leadingZeroBitCount)) >> 3)
        return (wanted + step - 1) / step * step
    }

    public func allocate(byteCount: Int) throws -> UnsafeMutableRawPointer {
        try lock.withLock { _ in
            let size = Self.sizeClass(byteCount)
            let address = try freed[size]?.popLast() ?? take(size)
            commands.clear(address, byteCount: size)
            return address
        }
    }

    private func take(_ size: Int) throws -> UnsafeMutableRawPointer {
        guard size <= Self.mostInSlab else { return try device.allocate(byteCount: size) }
        if slab == nil || slab!.left < size {
            slab = (try device.allocate(byteCount: Self.slabByteCount), Self.slabByteCount)
        }
        defer { slab = (slab!.address + size, slab!.left - size) }
        return slab!.address
    }

    public func free(_ address: UnsafeMutableRawPointer, byteCount: Int) {
        lock.withLock { _ in freed[Self.sizeClass(byteCount), default: []].append(address) }
    }

    public func copy(from source: UnsafeRawPointer, to target: UnsafeMutableRawPointer, byteCount: Int) {
        guard byteCount > 0 else { return }
        lock.withLock { _ in commands.copy(from: source, to: target, byteCount: byteCount) }
    }

    public func read(_ source: UnsafeRawPointer, into host: UnsafeMutableRawPointer, byteCount: Int) {
        lock.withLock { _ in
            attempt {
                try start()
                try device.read(source, into: host, byteCount: byteCount)
            }
        }
    }

    public func write(_ host: UnsafeRawPointer, to target: UnsafeMutableRawPointer, byteCount: Int) {
        lock.withLock { _ in
            attempt {
                try start()
                try device.write(host, to: target, byteCount: byteCount)
            }
        }
    }

    private func attempt(_ body: () throws -> Void) {
        do { try body() } catch { if failure == nil { failure = error } }
    }

    /// Lets the device begin with what was added.
    private func start() throws {
        guard !commands.isEmpty else { return }
        defer { commands.removeAll() }
        try device.run(commands)
    }

    /// - Throws: What went wrong since the last call, here or on the device.
    func check() throws {
        try lock.withLock { _ in
            if let error = failure {
                failure = nil
                throw error
            }
        }
    }

    func dispatch<T>(_ kernel: GPUKernel, grid: (Int, Int, Int), _ addresses: [UnsafeRawPointer?], _ arguments: T,
                     overlaps: Bool = false) {
        lock.withLock { _ in commands.dispatch(kernel, grid: grid, addresses, arguments, overlaps: overlaps) }
    }

    func wait() throws {
        try lock.withLock { _ in
            try start()
            try device.wait()
        }
        try check()
    }
}
