/// The place where a model is computed: one method per step of it, each over all tokens of a batch
/// unless its comment says "of one session". Tensors returned live in `arena`.
///
/// Nothing outside a backend follows an address: tensors, rows and weights may lie where the CPU
/// cannot reach. A backend may fall behind its caller; `read` waits.
///
/// Shapes: n tokens, D hidden size, H heads of `dim` values, E experts. Everything is f32.
public protocol Backend: AnyObject {
    /// "cpu", "cuda", "metal".
    var name: String { get }
    var arena: Arena { get }
    var memory: any Memory { get }
    /// Prompts are evaluated in chunks that end at multiples of this many tokens.
    var chunkTokens: Int { get }
    /// What a GPU has left; nil where the CPU computes.
    var deviceMemory: DeviceMemory? { get }

    /// Makes weights ready to compute with; called once, before any other method sees them.
    func load(_ weights: [Matrix], _ tables: [IntTable]) throws

    /// Lets the methods that `body` calls run at once, if `isIndependent` says that none needs another's result.
    func concurrently<R>(_ isIndependent: Bool, _ body: () throws -> R) rethrows -> R

    // MARK: Between the CPU and here

    /// A forward pass begins.
    func beginPass()
    func upload(_ values: [Int32]) throws -> IntTensor
    /// Hands over x when everything before it is computed; valid during the call only.
    func read(_ x: Tensor, _ receive: (UnsafeBufferPointer<Float>) -> Void) throws

    /// A token for each row of logits; nil: this backend leaves it to who reads them.
    func choose(_ logits: Tensor, _ choices: [TokenChoice]) throws -> [Int32]?

    // MARK: Matrices and norms

    /// Rows `tokens` of `table`: [n, columns].
    func embed(_ table: Matrix, _ tokens: IntTensor) throws -> Tensor
    /// x [n, columns] through each matrix: [n, rows] each. One pass: `x` is prepared once for all.
    func project(_ x: Tensor, _ matrices: [Matrix]) throws -> [Tensor]
    /// x [n, groups · columns], group g through rows [g·R, (g+1)·R) of the matrix: [n, groups · R].
    func projectGroups(_ x: Tensor, _ matrix: Matrix, groups: Int) throws -> Tensor
    /// x / rms(x) · weight over rows of `width` values.
    func rmsNorm(_ x: Tensor, width: Int, weight: Vector, epsilon: Float) throws -> Tensor

    // MARK: Hyper-connections (report §2.2)

    /// Four copies of x [n, D]: streams [n, 4, D].
    func hcSpread(_ x: Tensor) throws -> Tensor
    /// Into a sublayer: how the four streams meet around it, and its normed input Σ pre_i · stream_i.
    func hcEnter(_ streams: Tensor, _ weights: HyperConnectionWeights, norm: Vector,
                 epsilon: Float) throws -> (x: Tensor, mix: HyperConnectionMix)
    /// Out of it: streams_j = post_j · y + Σ_i comb[i][j] · stream_i, in place.
    func hcLeave(_ streams: Tensor, _ y: Tensor, _ mix: HyperConnectionMix) throws
    /// The head's input: the streams collapsed by their own weights, normed.
    func hcHead(_ streams: Tensor, _ weights: HyperConnectionWeights, norm: Vector, epsilon: Float) throws -> Tensor

    // MARK: Attention

    /// cos and sin of every rotated pair at `positions`: [n, rope/2, 2].
    func ropeTable(_ positions: IntTensor, _ frequencies: Vector) throws -> Tensor
    /// Queries [n, H · dim]: each head normed without weight, then rotated. May work in place.
    func queries(_ q: Tensor, heads: Int, epsilon: Float, table: Tensor) throws -> Tensor
    /// Indexer queries [n, H · dim]: rotated and, if `rounded`, rounded the way FP4 rows are. In place.
    func indexQueries(_ q: Tensor, heads: Int, rounded: Bool, table: Tensor) throws
    /// Keys kv [n, dim], normed and rotated, as encoded rows.
    func keyRows(_ kv: Tensor, norm: Vector, epsilon: Float, table: Tensor,
                 _ format: RowFormat) throws -> UnsafeMutablePointer<UInt8>
    /// Of one session: pools the windows that these tokens complete, and appends their rows.
    func compress(_ call: CompressorCall, into rows: inout RowStore) throws
    /// Of one session: the `top` best visible rows for each token, ascending.
    func selectRows(_ call: SelectionCall, of rows: RowStore) throws -> RowSelection
    /// Of one session: attends, rotates back, and keeps the last rows in the ring.
    func attend(_ call: AttentionCall) throws
    /// The same three for one token of each of several sessions, whose rows follow one another in the batch,
    /// or for one session with any number. The stores have room; who owns them counts the new rows.
    func compress(_ calls: [CompressorCall], into stores: [RowStore]) throws
    func selectRows(_ calls: [SelectionCall], of stores: [RowStore]) throws -> [RowSelection]
    func attend(_ calls: [AttentionCall]) throws

    // MARK: Experts

    func routeTopK(_ logits: Tensor, bias: Vector, used: Int, scale: Float) throws -> Routing
    func routeHash(_ logits: Tensor, table: IntTable, tokens: IntTensor, used: Int, scale: Float) throws -> Routing
    /// Σ over the experts of each token, plus the shared expert.
    func experts(_ call: ExpertsCall) throws -> Tensor
}

/// Memory that a GPU computes with, in bytes.
public struct DeviceMemory: Sendable {
    /// "NVIDIA H200".
    public let name: String
    public let available: Int
    /// Taken for activations already.
    public let buffers: Int
    /// Tokens of a prompt that are computed at once.
    public let chunkTokens: Int
}

extension Backend {
    public var deviceMemory: DeviceMemory? { nil }
    public func beginPass() {}
    public func choose(_ logits: Tensor, _ choices: [TokenChoice]) throws -> [Int32]? { nil }
    public func concurrently<R>(_ isIndependent: Bool, _ body: () throws -> R) rethrows -> R { try body() }

    public func compress(_ calls: [CompressorCall], into stores: [RowStore]) throws {
        for (call, store) in zip(calls, stores) {
            // A copy that counts in vain: it shares the pages.
            var store = store
            try compress(call, into: &store)
        }
    }

    public func selectRows(_ calls: [SelectionCall], of stores: [RowStore]) throws -> [RowSelection] {
        try zip(calls, stores).map { try selectRows($0, of: $1) }
    }

    public func attend(_ calls: [AttentionCall]) throws {
        for call in calls { try attend(call) }
    }

    /// Rows `indices` of x behind one another; no copy when they are already.
    public func rows(_ x: Tensor, _ indices: [Int]) throws -> Tensor {
        guard let first = indices.first else { return x[0..<0] }
        if indices == Array(first..<first + indices.count) { return x[first..<first + indices.count] }
        let out = try arena.tensor(indices.count, x.width)
        for (slot, index) in indices.enumerated() {
            memory.copy(from: x.floats + index * x.width, to: out.floats + slot * x.width, byteCount: x.width * 4)
        }
        return Tensor(shape: [indices.count] + x.shape.dropFirst(), floats: out.floats)
    }
}

/// fn [24, 4D] (the head's: [4, 4D]), base [24], scale [3] of one hyper-connection.
public struct HyperConnectionWeights {
    public let fn: Matrix
    public let base: Vector
    public let scale: Vector
    public let sinkhornIterations: Int
    /// Of the RMS norm over the flattened streams.
    public let normEpsilon: Float
    public let epsilon: Float

    public init(fn: Matrix, base: Vector, scale: Vector, sinkhornIterations: Int, normEpsilon: Float,
                epsilon: Float) {
        self.fn = fn
        self.base = base
        self.scale = scale
        self.sinkhornIterations = sinkhornIterations
        self.normEpsilon = normEpsilon
        self.epsilon = epsilon
    }
}

/// pre [n, 4], post [n, 4], comb [n, 4, 4].
public struct HyperConnectionMix {
    public let pre: Tensor
    public let post: Tensor
    public let comb: Tensor
}

/// Which experts each token takes and with what weight: [n, used] both.
public struct Routing {
    public let ids: IntTensor
    public let weights: Tensor
}

/// Compressed rows that each token attends to: row i of `rows` [n, top] holds counts[i] of them.
public struct RowSelection {
    public let rows: IntTensor
    public let counts: IntTensor
}

/// Consecutive tokens of one session on their way into compressed rows; see `compressor_pool_f32`.
public struct CompressorCall {
    /// [n, series · dim]; the gate without its bias.
    public let kv: Tensor
    public let gate: Tensor
    public let bias: Vector
    public let norm: Vector
    public let epsilon: Float
    public let ratio: Int
    public let overlaps: Bool
    public let position: Int
    /// The same for each token, where kernels can read it.
    public let positions: IntTensor
    public let frequencies: Vector
    public let state: Buffer

    public init(kv: Tensor, gate: Tensor, bias: Vector, norm: Vector, epsilon: Float, ratio: Int, overlaps: Bool,
                position: Int, positions: IntTensor, frequencies: Vector, state: Buffer) {
        self.kv = kv
        self.gate = gate
        self.bias = bias
        self.norm = norm
        self.epsilon = epsilon
        self.ratio = ratio
        self.overlaps = overlaps
        self.position = position
        self.positions = positions
        self.frequencies = frequencies
        self.state = state
    }

    /// Windows that these tokens complete.
    public var completed: Int { (position + kv.rows) / ratio - position / ratio }
}

/// Which compressed rows the tokens of one session look for; see `indexer_select`.
public struct SelectionCall {
    /// [n, heads · dim] and [n, heads].
    public let q: Tensor
    public let weights: Tensor
    public let heads: Int
    public let position: Int
    public let positions: IntTensor
    /// A token at p sees (p + 1) / ratio rows.
    public let ratio: Int
    public let top: Int
    public let scale: Float

    public init(q: Tensor, weights: Tensor, heads: Int, position: Int, positions: IntTensor, ratio: Int, top: Int,
                scale: Float) {
        self.q = q
        self.weights = weights
        self.heads = heads
        self.position = position
        self.positions = positions
        self.ratio = ratio
        self.top = top
        self.scale = scale
    }
}

/// Attention of consecutive tokens of one session; see `ck_attention`.
public struct AttentionCall {
    public let q: Tensor
    public let heads: Int
    public let position: Int
    public let positions: IntTensor
    public let window: Int
    public let format: RowFormat
    /// Rows before `position` (slot = position mod window), and those of this call.
    public let ring: Buffer
    public let chunk: UnsafeMutablePointer<UInt8>
    public let compressed: RowStore?
    /// nil: all (p + 1) / ratio visible ones.
    public let selection: RowSelection?
    public let ratio: Int
    public let sinks: Vector
    public let scale: Float
    /// By which the result is rotated back.
    public let table: Tensor
    public let out: Tensor

    public init(q: Tensor, heads: Int, position: Int, positions: IntTensor, window: Int, format: RowFormat,
                ring: Buffer, chunk: UnsafeMutablePointer<UInt8>, compressed: RowStore?, selection: RowSelection?,
                ratio: Int, sinks: Vector, scale: Float, table: Tensor, out: Tensor) {
        self.q = q
        self.heads = heads
        self.position = position
        self.positions = positions
        self.window = window
        self.format = format
        self.ring = ring
        self.chunk = chunk
        self.compressed = compressed
        self.selection = selection
        self.ratio = ratio
        self.sinks = sinks
        self.scale = scale
        self.table = table
        self.out = out
    }
}

/// One routed feed-forward layer; see `ck_experts`.
public struct ExpertsCall {
    public let x: Tensor
    public let gate: Matrix
    public let up: Matrix
    public let down: Matrix
    public let routing: Routing
    public let clamp: Float
    /// The shared expert after its first two matrices: silu(min(gate, clamp)) · clip(up, ±clamp) goes
    /// through `sharedDown`.
    public let sharedGate: Tensor
    public let sharedUp: Tensor
    public let sharedDown: Matrix
    public let sharedClamp: Float

    public init(x: Tensor, gate: Matrix, up: Matrix, down: Matrix, routing: Routing, clamp: Float, sharedGate: Tensor,
                sharedUp: Tensor, sharedDown: Matrix, sharedClamp: Float) {
        self.x = x
        self.gate = gate
        self.up = up
        self.down = down
        self.routing = routing
        self.clamp = clamp
        self.sharedGate = sharedGate
        self.sharedUp = sharedUp
        self.sharedDown = sharedDown
        self.sharedClamp = sharedClamp
    }
}
