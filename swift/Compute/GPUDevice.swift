/// A GPU, or something that behaves like one: memory, kernels, and one queue that runs commands in order.
///
/// Everything above it is shared, so what runs on one device is what runs on all of them. Addresses are
/// the device's own; where memory is unified they are also the CPU's.
public protocol GPUDevice: AnyObject {
    /// "cuda", "metal", "emulated".
    var name: String { get }
    /// "NVIDIA H200", for people.
    var model: String { get }
    /// Whether kernels read the CPU's memory in place.
    var isUnified: Bool { get }
    /// Bytes that could be allocated now, as far as the system says.
    var availableByteCount: Int { get }

    /// Makes the kernels ready for weights of these types, GPU_… of kernel_args.h, before anything else is asked.
    func prepare(types: Set<UInt32>) throws

    /// - Throws: `ComputeError.outOfMemory`.
    func allocate(byteCount: Int) throws -> UnsafeMutableRawPointer
    func free(_ address: UnsafeMutableRawPointer)
    /// Unified memory only: lets kernels read what the CPU has at `address`, for as long as the device lives.
    func adopt(_ address: UnsafeRawPointer, byteCount: Int) throws
    /// What a kernel finds an address under that it reads from memory: a page of a table.
    func kernelAddress(_ address: UnsafeRawPointer) -> UInt64

    /// Runs the commands after everything before them. Returns before they are done; what goes wrong is
    /// thrown by `wait`.
    func run(_ commands: GPUCommands) throws
    /// Copies after everything before; both return when `host` may be used again.
    func write(_ host: UnsafeRawPointer, to target: UnsafeMutableRawPointer, byteCount: Int) throws
    func read(_ source: UnsafeRawPointer, into host: UnsafeMutableRawPointer, byteCount: Int) throws
    func wait() throws
}

extension GPUDevice {
    public func prepare(types: Set<UInt32>) {}
}

/// The kernels by their names in Compute/Metal, and the threads of a threadgroup of each.
public enum GPUKernel: Int, CaseIterable, Sendable {
    case matvec_common, matvec_int8, int8_pack, matvec_int8_many, matvec_1, matvec_4, matmul_embed, matmul_tile, matmul_experts
    case half_pack, matmul_wide, experts_gate_up_wide, experts_down_wide
    case quant_repack_q8_0, quant_repack_q2_k, quant_repack_iq2_xxs
    case rms_norm_f32, rope_table_f32, rope_queries_f32
    case hc_spread, hc_mix, hc_mix_many, hc_enter, hc_head, hc_leave, hc_leave_mix
    case kv_key_rows, kv_index_queries
    case compressor_step, compressor_rows, compressor_state
    case indexer_score, indexer_top_k
    case attention_split, attention_tiles, attention_merge
    case router_top_k, router_hash
    case experts_gate_up, experts_gate_up_int8, experts_down, experts_down_int8
    case experts_sort, experts_swiglu, shared_swiglu, experts_sum
    case sampling_scan, copy_many

    public var name: String { "\(self)" }

    /// Only for devices with memory of their own: of their planes of weights, or with more threadgroup memory than
    /// Metal has.
    public var isForOwnMemory: Bool {
        switch self {
        case .matvec_int8, .int8_pack, .matvec_int8_many, .experts_gate_up_int8, .experts_down_int8, .half_pack, .matmul_wide,
             .experts_gate_up_wide, .experts_down_wide:
            true
        default:
            false
        }
    }

    /// Threadgroup memory beyond what the kernel declares: the ring of wide.h.
    public var sharedByteCount: Int {
        switch self {
        case .matmul_wide: 4 * 128 * 64 * 2
        case .experts_gate_up_wide, .experts_down_wide: 4 * 64 * 64 * 2
        default: 0
        }
    }

    public var threads: Int {
        switch self {
        case .matvec_common, .matvec_1, .matvec_4, .matmul_tile, .matmul_experts, .attention_merge, .experts_gate_up,
             .experts_down:
            128
        case .hc_enter, .hc_head:
            512
        case .compressor_rows, .indexer_top_k, .experts_sort, .sampling_scan:
            1024
        case .router_hash:
            32
        default:
            256
        }
    }
}

/// Kernels, copies and fills in the order they will run, as plain words: lists can be compared, so that
/// a device may keep what it made of one.
public struct GPUCommands {
    public private(set) var words: [UInt64] = []
    /// Of `words`, mixed as they are added.
    public private(set) var hash: UInt64 = 0

    public init() {}

    public var isEmpty: Bool { words.isEmpty }
    /// Commands.
    public private(set) var count = 0
    /// No copies, no fills.
    public private(set) var isKernelsOnly = true

    public mutating func removeAll() {
        words.removeAll(keepingCapacity: true)
        count = 0
        hash = 0
        isKernelsOnly = true
    }

    private mutating func add(_ word: UInt64) {
        words.append(word)
        hash = (hash ^ word) &* 0x9e37_79b9_7f4a_7c15
        hash ^= hash >> 29
    }

    private static let copyCode: UInt64 = 0xfffe
    private static let fillCode: UInt64 = 0xffff
    private static let overlapFlag: UInt64 = 0x4000

    /// - Parameters:
    ///   - grid: Threadgroups.
    ///   - addresses: The kernel's buffers 0, 1, …; nil where it will not look.
    ///   - arguments: Its last buffer.
    ///   - overlaps: It does not need the command before it: both may run at once.
    public mutating func dispatch<T>(_ kernel: GPUKernel, grid: (Int, Int, Int), _ addresses: [UnsafeRawPointer?],
                                     _ arguments: T, overlaps: Bool = false) {
        withUnsafeBytes(of: arguments) { dispatch(kernel, grid: grid, addresses, bytes: $0, overlaps: overlaps) }
    }

    public mutating func dispatch(_ kernel: GPUKernel, grid: (Int, Int, Int), _ addresses: [UnsafeRawPointer?],
                                  bytes: UnsafeRawBufferPointer, overlaps: Bool = false) {
        precondition(grid.0 > 0 && grid.1 > 0 && grid.1 <= 65535 && grid.2 > 0 && grid.2 <= 65535, "\(kernel) \(grid)")
        let size = bytes.count, wordCount = (size + 7) / 8
        count += 1
        let flag: UInt64 = overlaps ? Self.overlapFlag : 0
        add(UInt64(kernel.rawValue) | flag | UInt64(addresses.count) << 16 | UInt64(size) << 32)
        add(UInt64(grid.0) | UInt64(grid.1) << 32)
        add(UInt64(grid.2))
        for address in addresses { add(UInt64(UInt(bitPattern: address))) }
        for i in 0..<wordCount {
            var word: UInt64 = 0
            let part = min(8, size - 8 * i)
            withUnsafeMutableBytes(of: &word) {
                $0.copyMemory(from: UnsafeRawBufferPointer(rebasing: bytes[8 * i..<8 * i + part]))
            }
            add(word)
        }
    }

    public mutating func copy(from source: UnsafeRawPointer, to target: UnsafeRawPointer, byteCount: Int) {
        isKernelsOnly = false
        count += 1
        for word in [Self.copyCode, UInt64(UInt(bitPattern: source)), UInt64(UInt(bitPattern: target)),
                     UInt64(byteCount)] { add(word) }
    }

    /// Zeros.
    public mutating func clear(_ target: UnsafeRawPointer, byteCount: Int) {
        isKernelsOnly = false
        count += 1
        for word in [Self.fillCode, UInt64(UInt(bitPattern: target)), UInt64(byteCount)] { add(word) }
    }

    public enum Command {
        /// The words of the buffers' addresses, and the bytes of the arguments.
        case dispatch(GPUKernel, grid: (Int, Int, Int), buffers: UnsafeBufferPointer<UInt64>,
                      arguments: UnsafeRawBufferPointer, overlaps: Bool)
        case copy(from: UInt, to: UInt, byteCount: Int)
        case clear(UInt, byteCount: Int)
    }

    public func forEach(_ body: (Command) throws -> Void) rethrows {
        try words.withUnsafeBufferPointer { words in
            var at = 0
            while at < words.count {
                switch words[at] & 0xffff {
                case Self.copyCode:
                    try body(.copy(from: UInt(words[at + 1]), to: UInt(words[at + 2]), byteCount: Int(words[at + 3])))
                    at += 4
                case Self.fillCode:
                    try body(.clear(UInt(words[at + 1]), byteCount: Int(words[at + 2])))
                    at += 3
                default:
                    let buffers = Int(words[at] >> 16 & 0xffff), size = Int(words[at] >> 32)
                    let grid = (Int(words[at + 1] & 0xffff_ffff), Int(words[at + 1] >> 32), Int(words[at + 2]))
                    let arguments = words.baseAddress! + at + 3 + buffers
                    try body(.dispatch(
                        GPUKernel(rawValue: Int(words[at] & 0x3fff))!, grid: grid,
                        buffers: UnsafeBufferPointer(start: words.baseAddress! + at + 3, count: buffers),
                        arguments: UnsafeRawBufferPointer(start: arguments, count: size),
                        overlaps: words[at] & Self.overlapFlag != 0))
                    at += 3 + buffers + (size + 7) / 8
                }
            }
        }
    }
}
