/// The place where a model is computed: one method per kernel, each over all tokens of a batch
/// unless its comment says "of one session". Tensors returned live in `arena`.
///
/// Shapes: n tokens, D hidden size, H heads of `dim` values, E experts. Everything is f32.
public protocol Backend: AnyObject {
    /// "cpu", "cuda", "metal".
    var name: String { get }
    var arena: Arena { get }

    // MARK: Matrices and norms

    /// Rows `tokens` of `table`: [n, columns].
    func embed(_ table: Matrix, _ tokens: [Int32]) throws -> Tensor
    /// x [n, columns] through each matrix: [n, rows] each. One pass: `x` is prepared once for all.
    func project(_ x: Tensor, _ matrices: [Matrix]) throws -> [Tensor]
    /// x [n, groups · columns], group g through rows [g·R, (g+1)·R) of the matrix: [n, groups · R].
    func projectGroups(_ x: Tensor, _ matrix: Matrix, groups: Int) throws -> Tensor
    /// x / rms(x) · weight over rows of `width` values.
    func rmsNorm(_ x: Tensor, width: Int, weight: Vector?, epsilon: Float) throws -> Tensor

    // MARK: Position

    /// cos and sin of every rotated pair at `positions`: [n, rope/2, 2].
    func ropeTable(_ positions: [Int32], _ frequencies: Vector) throws -> Tensor
    /// Rotates the last values of each of `heads` rows of a token, in place.
    func rope(_ x: Tensor, heads: Int, table: Tensor, inverse: Bool)

    // MARK: Hyper-connections (report §2.2)

    /// Four copies of x [n, D]: streams [n, 4, D].
    func hcSpread(_ x: Tensor) throws -> Tensor
    /// How the four streams meet around one sublayer.
    func hcSplit(_ streams: Tensor, _ weights: HyperConnectionWeights) throws -> HyperConnectionMix
    /// The head's collapse weights: [n, 4].
    func hcHead(_ streams: Tensor, _ weights: HyperConnectionWeights) throws -> Tensor
    /// Σ pre_i · stream_i: [n, D].
    func hcCollapse(_ streams: Tensor, _ pre: Tensor) throws -> Tensor
    /// streams_j = post_j · y + Σ_i comb[i][j] · stream_i, in place.
    func hcExpand(_ streams: Tensor, _ y: Tensor, _ mix: HyperConnectionMix)

    // MARK: Attention of one session

    /// x [n, dim] as encoded rows.
    func encodeRows(_ x: Tensor, _ format: RowFormat) throws -> UnsafeMutablePointer<UInt8>
    /// Pools the windows that these tokens complete; see `compressor_pool_f32` for the state.
    func compress(kv: Tensor, gate: Tensor, bias: Vector, ratio: Int, overlap: Bool, position: Int,
                  state: Buffer, dim: Int) throws -> Tensor
    /// Rounds queries [n · heads, dim] the way FP4 rows are kept, in place.
    func roundFP4(_ x: Tensor, dim: Int)
    /// The `top` best of the first `visible[i]` rows for each token, ascending.
    func selectRows(q: Tensor, weights: Tensor, heads: Int, rows: RowStore, visible: [Int32], top: Int,
                    scale: Float) throws -> RowSelection
    func attend(_ call: AttentionCall) throws -> Tensor

    // MARK: Experts

    /// silu(min(gate, clamp)) · clip(up, ±clamp), into `gate`.
    func swiglu(gate: Tensor, up: Tensor, clamp: Float)
    func routeTopK(_ logits: Tensor, bias: Vector?, used: Int, scale: Float) throws -> Routing
    func routeHash(_ logits: Tensor, table: UnsafePointer<Int32>, tokens: [Int32], used: Int,
                   scale: Float) throws -> Routing
    func experts(_ x: Tensor, gate: Matrix, up: Matrix, down: Matrix, routing: Routing,
                 clamp: Float) throws -> Tensor
    /// x += y
    func add(_ x: Tensor, _ y: Tensor)
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

/// Compressed rows a token attends to. `rows` nil: the first `counts[i]` ones.
public struct RowSelection {
    public let rows: IntTensor?
    public let counts: IntTensor

    public init(rows: IntTensor?, counts: IntTensor) {
        self.rows = rows
        self.counts = counts
    }
}

/// Attention of consecutive tokens of one session; see `ck_attention`.
public struct AttentionCall {
    public let q: Tensor
    public let heads: Int
    public let position: Int
    public let window: Int
    public let format: RowFormat
    /// Rows before `position` (slot = position mod window), and those of this call.
    public let ring: Buffer
    public let chunk: UnsafePointer<UInt8>
    public let compressed: RowStore?
    public let selection: RowSelection?
    public let sinks: Vector
    public let scale: Float

    public init(q: Tensor, heads: Int, position: Int, window: Int, format: RowFormat, ring: Buffer,
                chunk: UnsafePointer<UInt8>, compressed: RowStore?, selection: RowSelection?, sinks: Vector,
                scale: Float) {
        self.q = q
        self.heads = heads
        self.position = position
        self.window = window
        self.format = format
        self.ring = ring
        self.chunk = chunk
        self.compressed = compressed
        self.selection = selection
        self.sinks = sinks
        self.scale = scale
    }
}
