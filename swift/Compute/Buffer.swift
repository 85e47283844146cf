#if canImport(Glibc)
import Glibc
#else
import Darwin
#endif

/// Memory that one backend can compute with. On the CPU it is plain memory, zeroed when made.
public final class Buffer {
    public let byteCount: Int
    public let contents: UnsafeMutableRawPointer

    /// - Throws: `ComputeError.outOfMemory` when the system refuses.
    public init(byteCount: Int) throws {
        // calloc gives untouched zero pages: memory is used as it is written, not when reserved.
        guard let memory = calloc(max(byteCount, 1), 1) else {
            throw ComputeError.outOfMemory(byteCount: byteCount)
        }
        self.byteCount = byteCount
        contents = memory
    }

    deinit { free(contents) }

    public func copy() throws -> Buffer {
        let twin = try Buffer(byteCount: byteCount)
        twin.contents.copyMemory(from: contents, byteCount: byteCount)
        return twin
    }
}

/// What can go wrong while computing; everything else is checked when the model is loaded.
public enum ComputeError: Error, Equatable {
    case outOfMemory(byteCount: Int)
    case cancelled
}
