import CPyDS4
import CKernels
import Compute
import Engine

/// What a `pyds4_engine` handle points to.
final class EngineBox {
    let engine: Engine
    let strings: CStrings
    /// Lives as long as the engine: `pyds4_engine_file` hands it out unretained.
    let file: FileBox

    init(_ engine: Engine) {
        self.engine = engine
        strings = CStrings([engine.model.backend.name])
        file = FileBox(engine.file)
    }
}

private let version = StaticString("0.1.0")

@c @implementation
public func pyds4_version() -> UnsafePointer<CChar>! {
    UnsafeRawPointer(version.utf8Start).assumingMemoryBound(to: CChar.self)
}

@c @implementation
public func pyds4_instruction_set() -> UnsafePointer<CChar>! { ck_isa_name() }

private func engine(_ handle: OpaquePointer!) -> EngineBox { unwrap(handle, as: EngineBox.self) }

/// Checks `struct_size`: a caller built against another header is told so.
func checkSize<T>(_ size: Int, of type: T.Type, _ name: StaticString) throws {
    guard size == MemoryLayout<T>.size || size == MemoryLayout<T>.stride else {
        throw EngineError.invalidArgument(
            "\(name).struct_size: expected \(MemoryLayout<T>.stride), found \(size): library and caller differ in version")
    }
}

@c @implementation
public func pyds4_engine_open(_ path: UnsafePointer<CChar>!, _ options: UnsafePointer<pyds4_engine_options>!,
                              _ engine: UnsafeMutablePointer<OpaquePointer?>!) -> pyds4_status {
    reporting {
        let path = String(cString: try required(path, "path")), engine = try required(engine, "engine")
        engine.pointee = handle(EngineBox(try Engine(path: path, options: try EngineOptions(options))))
    }
}

extension EngineOptions {
    init(_ c: UnsafePointer<pyds4_engine_options>?) throws {
        self.init()
        guard let c = c?.pointee else { return }
        try checkSize(c.struct_size, of: pyds4_engine_options.self, "options")
        if let name = c.backend.map({ String(cString: $0) }) {
            guard let choice = BackendChoice(rawValue: name) else {
                throw EngineError.invalidArgument("backend: expected auto, cpu, metal or cuda, found '\(name)'")
            }
            backend = choice
        }
        threads = c.threads == 0 ? nil : Int(c.threads)
        roundings = c.roundings != 0
    }
}

@c @implementation
public func pyds4_engine_free(_ engine: OpaquePointer!) { release(engine) }

@c @implementation
public func pyds4_engine_config(_ handle: OpaquePointer!, _ config: UnsafeMutablePointer<pyds4_config>!) -> pyds4_status {
    reporting {
        let engine = engine(try required(handle, "engine")).engine, out = try required(config, "config")
        try checkSize(out.pointee.struct_size, of: pyds4_config.self, "config")
        let c = engine.configuration
        out.pointee = pyds4_config(
            struct_size: out.pointee.struct_size, layer_count: Int32(c.layerCount), hidden_size: Int32(c.hiddenSize),
            vocabulary_size: Int32(c.vocabularySize), context_length: Int32(c.contextLength),
            head_count: Int32(c.headCount), head_dim: Int32(c.headDim), rope_dim: Int32(c.ropeDim),
            query_rank: Int32(c.queryRank), window: Int32(c.window), indexer_head_count: Int32(c.indexerHeadCount),
            indexer_dim: Int32(c.indexerDim), indexer_top_k: Int32(c.indexerTopK), expert_count: Int32(c.expertCount),
            expert_used_count: Int32(c.expertUsedCount), expert_size: Int32(c.expertSize),
            hash_layer_count: Int32(c.hashLayerCount), threads: Int32(engine.threads),
            roundings: engine.options.roundings ? 1 : 0)
    }
}

@c @implementation
public func pyds4_engine_backend(_ handle: OpaquePointer!) -> UnsafePointer<CChar>! {
    UnsafePointer(engine(handle).strings.pointers[0])
}

@c @implementation
public func pyds4_engine_file(_ handle: OpaquePointer!) -> OpaquePointer! {
    OpaquePointer(Unmanaged.passUnretained(engine(handle).file).toOpaque())
}

// MARK: Steps

@c @implementation
public func pyds4_engine_step(_ handle: OpaquePointer!, _ items: UnsafeMutablePointer<pyds4_step_item>!,
                              _ n_items: Int) -> pyds4_status {
    reporting {
        let engine = engine(try required(handle, "engine")).engine, items = try required(items, "items")
        // A size_t beyond Int arrives as a negative number.
        guard n_items >= 0 else { throw EngineError.invalidArgument("n_items: expected fewer items") }
        let work = try (0..<n_items).map { index in
            let item = items[index]
            try checkSize(item.struct_size, of: pyds4_step_item.self, "item")
            if let sampling = item.sampling { try check(sampling, item.random) }
            let count = item.tokens == nil ? 0 : max(item.n_tokens, 0)
            return Work(session: unwrap(try required(item.session, "item.session"), as: Session.self),
                        tokens: Array(UnsafeBufferPointer(start: item.tokens, count: count)),
                        allLogits: item.all_logits, choice: item.sampling.map { choice($0, item.random) })
        }
        for (index, error) in engine.step(work).enumerated() { finish(&items[index], work[index].session, error) }
    }
}

/// Writes an item's outcome, and chooses its token if it asked for one.
private func finish(_ item: inout pyds4_step_item, _ session: Session, _ error: EngineError?) {
    item.token = -1
    var error = error
    if error == nil, let sampling = item.sampling {
        do {
            item.token = try session.chosenToken ?? session.withLogits { try choose($0, sampling, item.random) }
        } catch let failure {
            error = EngineError(failure)
        }
    }
    item.status = Int32(bitPattern: (error?.status ?? PYDS4_OK).rawValue)
    withUnsafeMutableBytes(of: &item.message) { message in
        var text = Array((error?.description ?? "").utf8.prefix(message.count - 1))
        // A cut must not split a character.
        while let last = text.last, last >= 0x80, String(validating: text, as: UTF8.self) == nil { text.removeLast() }
        message.copyBytes(from: text + [0])
    }
}

/// Checked before anything is evaluated: a session must not move for a token that cannot be chosen.
private func check(_ options: UnsafePointer<pyds4_sampling>, _ random: Double) throws {
    let o = options.pointee
    try checkSize(o.struct_size, of: pyds4_sampling.self, "sampling")
    func require(_ ok: Bool, _ what: String) throws {
        if !ok { throw EngineError.invalidArgument("sampling: " + what) }
    }
    try require(o.temperature >= 0 && o.temperature.isFinite, "temperature: expected 0 or more, found \(o.temperature)")
    try require(o.top_p > 0 && o.top_p <= 1, "top_p: expected more than 0, at most 1, found \(o.top_p)")
    try require(o.min_p >= 0 && o.min_p <= 1, "min_p: expected 0 to 1, found \(o.min_p)")
    try require(o.top_k >= 0, "top_k: expected 0 or more, found \(o.top_k)")
    try require(random >= 0 && random < 1, "random: expected 0 up to 1, found \(random)")
}

private func choice(_ options: UnsafePointer<pyds4_sampling>, _ random: Double) -> TokenChoice {
    let o = options.pointee
    return TokenChoice(temperature: o.temperature, topP: o.top_p, minP: o.min_p, topK: o.top_k, random: random)
}

private func choose(_ logits: UnsafeBufferPointer<Float>, _ options: UnsafePointer<pyds4_sampling>,
                    _ random: Double) throws -> Int32 {
    let o = options.pointee
    var c = ck_sampling(temperature: o.temperature, top_p: o.top_p, min_p: o.min_p, top_k: o.top_k)
    let token = sampling_choose(logits.baseAddress, Int64(logits.count), &c, random)
    guard token >= 0 else { throw EngineError.invalidArgument("sampling: no logit is a number") }
    return token
}

@c @implementation
public func pyds4_sample(_ logits: UnsafePointer<Float>!, _ count: Int, _ sampling: UnsafePointer<pyds4_sampling>!,
                         _ random: Double, _ token: UnsafeMutablePointer<Int32>!) -> pyds4_status {
    reporting {
        guard count > 0 else { throw EngineError.invalidArgument("count: expected 1 or more logits") }
        let logits = UnsafeBufferPointer(start: try required(logits, "logits"), count: count)
        let sampling = try required(sampling, "sampling")
        try check(sampling, random)
        try required(token, "token").pointee = try choose(logits, sampling, random)
    }
}
