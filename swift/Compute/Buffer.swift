#if canImport(Glibc)
import Glibc
#else
import Darwin
#endif

/// Where buffers live: the CPU's memory, or a GPU's. Addresses are opaque outside of it; work on them
/// happens in the order it was asked for, kernels included.
public protocol Memory: AnyObject, Sendable {
    /// - Returns: `byteCount` bytes of zeros, aligned to 64.
    /// - Throws: `ComputeError.outOfMemory` when the system refuses.
    func allocate(byteCount: Int) throws -> UnsafeMutableRawPointer
    /// The same, but whatever the bytes were before.
    func allocateUnset(byteCount: Int) throws -> UnsafeMutableRawPointer
    func free(_ address: UnsafeMutableRawPointer, byteCount: Int)
    func copy(from source: UnsafeRawPointer, to target: UnsafeMutableRawPointer, byteCount: Int)
    /// Between this memory and the CPU's. Both wait until the bytes may be used again.
    func read(_ source: UnsafeRawPointer, into host: UnsafeMutableRawPointer, byteCount: Int)
    func write(_ host: UnsafeRawPointer, to target: UnsafeMutableRawPointer, byteCount: Int)
}

extension Memory {
    public func allocateUnset(byteCount: Int) throws -> UnsafeMutableRawPointer { try allocate(byteCount: byteCount) }
}

/// Plain memory of this process.
public final class CPUMemory: Memory {
    public static let shared = CPUMemory()

    public func allocate(byteCount: Int) throws -> UnsafeMutableRawPointer {
        // calloc gives untouched zero pages: memory is used as it is written, not when reserved.
        guard let memory = calloc(max(byteCount, 1), 1) else {
            throw ComputeError.outOfMemory(byteCount: byteCount)
        }
        return memory
    }

    public func free(_ address: UnsafeMutableRawPointer, byteCount: Int) {
        #if canImport(Glibc)
        Glibc.free(address)
        #else
        Darwin.free(address)
        #endif
    }

    public func copy(from source: UnsafeRawPointer, to target: UnsafeMutableRawPointer, byteCount: Int) {
        target.copyMemory(from: source, byteCount: byteCount)
    }

    public func read(_ source: UnsafeRawPointer, into host: UnsafeMutableRawPointer, byteCount: Int) {
        host.copyMemory(from: source, byteCount: byteCount)
    }

    public func write(_ host: UnsafeRawPointer, to target: UnsafeMutableRawPointer, byteCount: Int) {
        target.copyMemory(from: host, byteCount: byteCount)
    }
}

/// Memory that one backend can compute with, zeroed when made if not asked otherwise.
public final class Buffer {
    public let byteCount: Int
    public let memory: any Memory
    /// Readable only in the CPU's memory.
    public let contents: UnsafeMutableRawPointer

    /// - Throws: `ComputeError.outOfMemory` when the system refuses.
    public init(byteCount: Int, in memory: any Memory = CPUMemory.shared, isCleared: Bool = true) throws {
        self.byteCount = byteCount
        self.memory = memory
        contents = try isCleared ? memory.allocate(byteCount: byteCount) : memory.allocateUnset(byteCount: byteCount)
    }

    deinit { memory.free(contents, byteCount: byteCount) }

    public func copy() throws -> Buffer {
        let twin = try Buffer(byteCount: byteCount, in: memory, isCleared: false)
        memory.copy(from: contents, to: twin.contents, byteCount: byteCount)
        return twin
    }

    /// Its bytes from `offset` on, for keeping them elsewhere, and the way back.
    public func read(into host: UnsafeMutableRawPointer, offset: Int = 0, byteCount: Int) {
        precondition(offset >= 0 && offset + byteCount <= self.byteCount)
        memory.read(contents + offset, into: host, byteCount: byteCount)
    }

    public func write(_ host: UnsafeRawPointer, offset: Int = 0, byteCount: Int) {
        precondition(offset >= 0 && offset + byteCount <= self.byteCount)
        memory.write(host, to: contents + offset, byteCount: byteCount)
    }
}

/// What can go wrong while computing; everything else is checked when the model is loaded.
public enum ComputeError: Error, Equatable {
    case outOfMemory(byteCount: Int)
    case cancelled
    /// A device or its compiler refused; says what and how.
    case device(String)
}
