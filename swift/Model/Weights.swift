import Compute
import GGUF

/// All weights of a model by their GGUF names, as views of the mapped file; only norms, biases and
/// other vectors are copied, as f32.
public struct Weights {
    public let tokenEmbd: Matrix
    public let outputHC: HyperConnectionWeights
    public let outputNorm: Vector
    public let output: Matrix
    public let blocks: [BlockWeights]

    /// - Throws: `ModelError` naming the tensor that is missing, misshapen or of a type no kernel reads.
    public init(_ file: GGUFFile, _ c: Configuration) throws {
        let load = WeightLoader(file: file)
        tokenEmbd = try load.matrix("token_embd", [c.hiddenSize, c.vocabularySize])
        outputHC = try load.hyperConnection("output_hc", outputs: 4, scales: 1, c)
        outputNorm = try load.vector("output_norm", [c.hiddenSize])
        output = try load.matrix("output", [c.hiddenSize, c.vocabularySize])
        blocks = try (0..<c.layerCount).map { try BlockWeights(load.prefixed("blk.\($0)."), c, layer: $0) }
    }

    /// Everything that is computed with where the file has it, or a copy of it, lies.
    var matrices: [Matrix] { [tokenEmbd, outputHC.fn, output] + blocks.flatMap(\.matrices) }
    var tables: [IntTable] {
        blocks.compactMap { if case let .hash(table) = $0.moe.router { table } else { nil } }
    }
}

/// One block: attention, then experts, each inside a hyper-connection.
public struct BlockWeights {
    public let attnHC: HyperConnectionWeights
    public let attnNorm: Vector
    public let attention: AttentionWeights
    public let ffnHC: HyperConnectionWeights
    public let ffnNorm: Vector
    public let moe: MoEWeights

    init(_ load: WeightLoader, _ c: Configuration, layer: Int) throws {
        attnHC = try load.hyperConnection("hc_attn", outputs: 24, scales: 3, c)
        attnNorm = try load.vector("attn_norm", [c.hiddenSize])
        attention = try AttentionWeights(load, c, ratio: c.compressRatios[layer])
        ffnHC = try load.hyperConnection("hc_ffn", outputs: 24, scales: 3, c)
        ffnNorm = try load.vector("ffn_norm", [c.hiddenSize])
        moe = try MoEWeights(load, c, isHash: layer < c.hashLayerCount)
    }

    var matrices: [Matrix] {
        let a = attention
        return [attnHC.fn, ffnHC.fn, a.qA, a.qB, a.kv, a.outputA, a.outputB]
            + [a.compressor, a.indexer?.compressor].compactMap { $0 }.flatMap { [$0.kv, $0.gate] }
            + (a.indexer.map { [$0.proj, $0.qB] } ?? [])
            + [moe.gateInp, moe.gateExps, moe.upExps, moe.downExps, moe.gateShexp, moe.upShexp, moe.downShexp]
    }
}

public struct AttentionWeights {
    public let qA: Matrix
    public let qANorm: Vector
    public let qB: Matrix
    public let kv: Matrix
    public let kvANorm: Vector
    public let sinks: Vector
    public let outputA: Matrix
    public let outputB: Matrix
    public let compressor: CompressorWeights?
    public let indexer: IndexerWeights?

    init(_ load: WeightLoader, _ c: Configuration, ratio: Int) throws {
        qA = try load.matrix("attn_q_a", [c.hiddenSize, c.queryRank])
        qANorm = try load.vector("attn_q_a_norm", [c.queryRank])
        qB = try load.matrix("attn_q_b", [c.queryRank, c.headCount * c.headDim])
        kv = try load.matrix("attn_kv", [c.hiddenSize, c.headDim])
        kvANorm = try load.vector("attn_kv_a_norm", [c.headDim])
        sinks = try load.vector("attn_sinks", [c.headCount])
        let groupWidth = c.headCount / c.outputGroupCount * c.headDim
        outputA = try load.matrix("attn_output_a", [groupWidth, c.outputGroupCount * c.outputRank])
        outputB = try load.matrix("attn_output_b", [c.outputGroupCount * c.outputRank, c.hiddenSize])
        compressor = ratio == 0 ? nil
            : try CompressorWeights(load.prefixed("attn_compressor_"), c, ratio: ratio, dim: c.headDim)
        indexer = ratio == Configuration.overlappingRatio ? try IndexerWeights(load, c, ratio: ratio) : nil
    }
}

/// wkv and wgate [D, series · dim], ape [series · dim, ratio], norm [dim].
public struct CompressorWeights {
    public let kv: Matrix
    public let gate: Matrix
    public let ape: Vector
    public let norm: Vector

    init(_ load: WeightLoader, _ c: Configuration, ratio: Int, dim: Int) throws {
        let width = ratio == Configuration.overlappingRatio ? 2 * dim : dim
        kv = try load.matrix("kv", [c.hiddenSize, width])
        gate = try load.matrix("gate", [c.hiddenSize, width])
        ape = try load.vector("ape", [width, ratio])
        norm = try load.vector("norm", [dim])
    }
}

public struct IndexerWeights {
    public let proj: Matrix
    public let qB: Matrix
    public let compressor: CompressorWeights

    init(_ load: WeightLoader, _ c: Configuration, ratio: Int) throws {
        proj = try load.matrix("indexer.proj", [c.hiddenSize, c.indexerHeadCount])
        qB = try load.matrix("indexer.attn_q_b", [c.queryRank, c.indexerHeadCount * c.indexerDim])
        compressor = try CompressorWeights(load.prefixed("indexer_compressor_"), c, ratio: ratio, dim: c.indexerDim)
    }
}

public struct MoEWeights {
    public enum Router {
        /// Learned scores plus a bias that only chooses.
        case learned(bias: Vector)
        /// Experts by token id: [vocabulary, used].
        case hash(IntTable)
    }
    public let gateInp: Matrix
    public let router: Router
    public let gateExps: Matrix
    public let upExps: Matrix
    public let downExps: Matrix
    public let gateShexp: Matrix
    public let upShexp: Matrix
    public let downShexp: Matrix

    init(_ load: WeightLoader, _ c: Configuration, isHash: Bool) throws {
        gateInp = try load.matrix("ffn_gate_inp", [c.hiddenSize, c.expertCount])
        if isHash {
            router = .hash(try load.expertTable("ffn_gate_tid2eid", c))
        } else {
            router = .learned(bias: try load.vector("exp_probs_b.bias", [c.expertCount], suffix: ""))
        }
        gateExps = try load.matrix("ffn_gate_exps", [c.hiddenSize, c.expertSize, c.expertCount])
        upExps = try load.matrix("ffn_up_exps", [c.hiddenSize, c.expertSize, c.expertCount])
        downExps = try load.matrix("ffn_down_exps", [c.expertSize, c.hiddenSize, c.expertCount])
        gateShexp = try load.matrix("ffn_gate_shexp", [c.hiddenSize, c.expertSize])
        upShexp = try load.matrix("ffn_up_shexp", [c.hiddenSize, c.expertSize])
        downShexp = try load.matrix("ffn_down_shexp", [c.expertSize, c.hiddenSize])
    }
}

/// Finds tensors by name and checks them.
struct WeightLoader {
    let file: GGUFFile
    var prefix = ""

    func prefixed(_ more: String) -> WeightLoader { WeightLoader(file: file, prefix: prefix + more) }

    private func find(_ name: String, _ shape: [Int]) throws -> GGUFTensor {
        let path = file.paths[0]
        guard let tensor = file.tensor(name) else { throw ModelError.missingTensor(file: path, name: name) }
        // Trailing ones may be written or left out.
        func trimmed(_ shape: [Int]) -> [Int] {
            var s = shape
            while s.count > 1, s.last == 1 { s.removeLast() }
            return s
        }
        guard trimmed(tensor.shape) == trimmed(shape) else {
            throw ModelError.wrongShape(file: path, name: name, expected: shape, found: tensor.shape)
        }
        return tensor
    }

    /// `shape` as in the file: columns, rows, and how many matrices.
    func matrix(_ name: String, _ shape: [Int], suffix: String = ".weight") throws -> Matrix {
        let full = prefix + name + suffix
        let tensor = try find(full, shape)
        let type = Int32(tensor.type.rawValue)
        guard Matrix.canCompute(type: type) else {
            throw ModelError.unsupportedType(file: file.paths[0], name: full, type: "\(tensor.type)")
        }
        return Matrix(name: full, type: type, rows: shape.count > 1 ? shape[1] : 1, columns: shape[0],
                      count: shape.count > 2 ? shape[2] : 1, data: tensor.pointer)
    }

    func vector(_ name: String, _ shape: [Int], suffix: String = ".weight") throws -> Vector {
        Vector(name: prefix + name + suffix, try matrix(name, shape, suffix: suffix).decoded())
    }

    func hyperConnection(_ name: String, outputs: Int, scales: Int,
                         _ c: Configuration) throws -> HyperConnectionWeights {
        HyperConnectionWeights(
            fn: try matrix(name + "_fn", [4 * c.hiddenSize, outputs]),
            base: try vector(name + "_base", [outputs]), scale: try vector(name + "_scale", [scales]),
            sinkhornIterations: c.sinkhornIterations, normEpsilon: c.normEpsilon,
            epsilon: c.hyperConnectionEpsilon)
    }

    /// The table must name existing experts: kernels index by it.
    func expertTable(_ name: String, _ c: Configuration) throws -> IntTable {
        let full = prefix + name + ".weight"
        let tensor = try find(full, [c.expertUsedCount, c.vocabularySize])
        guard tensor.type == .i32 else {
            throw ModelError.badTensor(file: file.paths[0], name: full, reason: "expected type i32, found \(tensor.type)")
        }
        let table = tensor.pointer.bindMemory(to: Int32.self, capacity: tensor.elementCount)
        for i in 0..<tensor.elementCount where !(0..<Int32(c.expertCount)).contains(table[i]) {
            throw ModelError.badTensor(
                file: file.paths[0], name: full,
                reason: "entry \(i) names expert \(table[i]) of \(c.expertCount)")
        }
        return IntTable(name: full, data: UnsafePointer(table), count: tensor.elementCount)
    }
}
