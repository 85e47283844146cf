import GPUSources
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

    /// So many commands start together: few while the device waits for us, so that it begins while the rest
    /// of a token is still being written down; more when it is busy.
    private var part = firstPart
    private static let firstPart = 24, mostPart = 192

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
            let size = Self.sizeClass(byteCount), address = try place(size)
            addSmallCopies()
            commands.clear(address, byteCount: size)
            return address
        }
    }

    public func allocateUnset(byteCount: Int) throws -> UnsafeMutableRawPointer {
        try lock.withLock { _ in try place(Self.sizeClass(byteCount)) }
    }

    private func place(_ size: Int) throws -> UnsafeMutableRawPointer { try freed[size]?.popLast() ?? take(size) }

    private func take(_ size: Int) throws -> UnsafeMutableRawPointer {
        guard size <= Self.mostInSlab else { return try device.allocate(byteCount: size) }
        if slab == nil || slab!.left < size {
            slab = (try device.allocate(byteCount: Self.slabByteCount), Self.slabByteCount)
        }
        defer { slab = (slab!.address + size, slab!.left - size) }
        return slab!.address
    }

    /// Taken from the device and in no use.
    var spareByteCount: Int {
        lock.withLock { _ in freed.reduce(slab?.left ?? 0) { $0 + $1.key * $1.value.count } }
    }

    public func free(_ address: UnsafeMutableRawPointer, byteCount: Int) {
        lock.withLock { _ in freed[Self.sizeClass(byteCount), default: []].append(address) }
    }

    public func copy(from source: UnsafeRawPointer, to target: UnsafeMutableRawPointer, byteCount: Int) {
        guard byteCount > 0 else { return }
        lock.withLock { _ in
            guard byteCount % 4 == 0, byteCount < Self.largeCopy else {
                addSmallCopies()
                commands.copy(from: source, to: target, byteCount: byteCount)
                return
            }
            let new = SmallCopy(from: UInt(bitPattern: source), to: UInt(bitPattern: target), byteCount: UInt(byteCount))
            // They run at once: none may need another's result.
            if smallCopies.count == Int(GPU_MOST_COPIES) || smallCopies.contains(where: new.conflicts) { addSmallCopies() }
            smallCopies.append(new)
        }
    }

    /// From here on the queue's own engine is faster than one threadgroup.
    private static let largeCopy = 1 << 17

    private struct SmallCopy {
        let from: UInt, to: UInt, byteCount: UInt

        func conflicts(_ earlier: SmallCopy) -> Bool {
            func overlap(_ a: UInt, _ b: UInt) -> Bool { a < b + earlier.byteCount && b < a + byteCount }
            return overlap(from, earlier.to) || overlap(to, earlier.from) || overlap(to, earlier.to)
        }
    }
    /// Copies behind one another, to become one command: a savepoint has sixty.
    private var smallCopies: [SmallCopy] = []

    private func addSmallCopies() {
        guard !smallCopies.isEmpty else { return }
        var jobs = [UInt64](repeating: 0, count: 4 * Int(GPU_MOST_COPIES))
        for (i, copy) in smallCopies.enumerated() {
            jobs[4 * i] = device.kernelAddress(UnsafeRawPointer(bitPattern: copy.from)!)
            jobs[4 * i + 1] = device.kernelAddress(UnsafeRawPointer(bitPattern: copy.to)!)
            jobs[4 * i + 2] = (copy.from | copy.to) % 16 == 0 ? UInt64(copy.byteCount / 16) : 0
            jobs[4 * i + 3] = UInt64(copy.byteCount / 4)
        }
        jobs.withUnsafeBytes { commands.dispatch(.copy_many, grid: (smallCopies.count, 1, 1), [], bytes: $0) }
        smallCopies.removeAll(keepingCapacity: true)
    }

    public func read(_ source: UnsafeRawPointer, into host: UnsafeMutableRawPointer, byteCount: Int) {
        lock.withLock { _ in
            attempt {
                try start()
                part = Self.firstPart
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

    /// The same for memory that no command uses which has not started: those need not start first.
    func writeAhead(_ host: UnsafeRawPointer, to target: UnsafeMutableRawPointer, byteCount: Int) {
        lock.withLock { _ in attempt { try device.write(host, to: target, byteCount: byteCount) } }
    }

    private func attempt(_ body: () throws -> Void) {
        do { try body() } catch { if failure == nil { failure = error } }
    }

    /// Lets the device begin with what was added.
    private func start() throws {
        addSmallCopies()
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
        lock.withLock { _ in
            addSmallCopies()
            commands.dispatch(kernel, grid: grid, addresses, arguments, overlaps: overlaps)
            if commands.count >= part {
                part = min(2 * part, Self.mostPart)
                attempt { try start() }
            }
        }
    }

    func wait() throws {
        try lock.withLock { _ in
            try start()
            part = Self.firstPart
            try device.wait()
        }
        try check()
    }
}
