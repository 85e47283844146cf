#if canImport(Glibc)
import Glibc
#else
import Darwin
#endif

/// The kernels on the CPU, a thread of the GPU at a time: slow, and exactly what a GPU is asked to do.
/// For tests; the library that it opens is built by scripts/msl/build_host.sh.
public final class HostDevice: GPUDevice {
    public let name = "emulated"
    public let model = "CPU"
    /// With PYDS4_EMULATOR_UNIFIED the kernels that Metal runs, on weights as they lie in the file.
    public let isUnified = getenv("PYDS4_EMULATOR_UNIFIED") != nil
    /// As much as PYDS4_EMULATOR_MEMORY pretends, in bytes.
    public private(set) var availableByteCount = getenv("PYDS4_EMULATOR_MEMORY").flatMap { Int(String(cString: $0)) } ?? 1 << 60
    private var sizes: [UnsafeMutableRawPointer: Int] = [:]

    private typealias Dispatch = @convention(c) (
        UnsafePointer<CChar>, UnsafePointer<UInt32>, UnsafePointer<UInt32>, UnsafePointer<UnsafeMutableRawPointer?>
    ) -> Int32
    private typealias Message = @convention(c) () -> UnsafePointer<CChar>
    private let dispatch: Dispatch
    private let message: Message

    public init(library path: String) throws {
        guard let library = dlopen(path, RTLD_NOW | RTLD_LOCAL), let dispatch = dlsym(library, "msl_dispatch_direct"),
              let message = dlsym(library, "msl_error") else {
            throw ComputeError.device("the emulator '\(path)' cannot be opened: \(String(cString: dlerror()))")
        }
        self.dispatch = unsafeBitCast(dispatch, to: Dispatch.self)
        self.message = unsafeBitCast(message, to: Message.self)
    }

    public func allocate(byteCount: Int) throws -> UnsafeMutableRawPointer {
        var address: UnsafeMutableRawPointer?
        guard byteCount <= availableByteCount else { throw ComputeError.outOfMemory(byteCount: byteCount) }
        guard posix_memalign(&address, 256, max(byteCount, 1)) == 0, let address else {
            throw ComputeError.outOfMemory(byteCount: byteCount)
        }
        availableByteCount -= byteCount
        sizes[address] = byteCount
        return address
    }

    public func free(_ address: UnsafeMutableRawPointer) {
        availableByteCount += sizes.removeValue(forKey: address) ?? 0
        #if canImport(Glibc)
        Glibc.free(address)
        #else
        Darwin.free(address)
        #endif
    }

    public func adopt(_ address: UnsafeRawPointer, byteCount: Int) {}
    public func kernelAddress(_ address: UnsafeRawPointer) -> UInt64 { UInt64(UInt(bitPattern: address)) }

    public func run(_ commands: GPUCommands) throws {
        try commands.forEach { command in
            switch command {
            case let .dispatch(kernel, grid, buffers, arguments, _):
                var addresses = buffers.map { UnsafeMutableRawPointer(bitPattern: UInt($0)) }
                addresses.append(UnsafeMutableRawPointer(mutating: arguments.baseAddress))
                let status = dispatch(kernel.name, [UInt32(grid.0), UInt32(grid.1), UInt32(grid.2)],
                                      [UInt32(kernel.threads), 1, 1], addresses)
                guard status == 0 else {
                    throw ComputeError.device("kernel \(kernel.name): \(String(cString: message()))")
                }
            case let .copy(source, target, byteCount):
                memmove(UnsafeMutableRawPointer(bitPattern: target)!, UnsafeRawPointer(bitPattern: source)!, byteCount)
            case let .clear(target, byteCount):
                memset(UnsafeMutableRawPointer(bitPattern: target)!, 0, byteCount)
            }
        }
    }

    public func write(_ host: UnsafeRawPointer, to target: UnsafeMutableRawPointer, byteCount: Int) {
        memcpy(target, host, byteCount)
    }

    public func read(_ source: UnsafeRawPointer, into host: UnsafeMutableRawPointer, byteCount: Int) {
        memcpy(host, source, byteCount)
    }

    public func wait() {}
}
