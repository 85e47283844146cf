/// A valid set of files in memory, and where its structural numbers stand.
struct Seed {
    /// What is opened.
    let path: String
    let files: [String: [UInt8]]
    let fields: [String: [GGUFBuilder.Field]]
    /// Names of `files` in order, so that runs do not depend on the hash seed.
    let names: [String]

    init(_ builder: GGUFBuilder) { self.init(path: "seed.gguf", ["seed.gguf": builder]) }

    init(path: String, _ builders: [String: GGUFBuilder]) {
        self.path = path
        let built = builders.mapValues { $0.build() }
        files = built.mapValues(\.bytes)
        fields = built.mapValues(\.fields)
        names = builders.keys.sorted()
    }

    /// Every value type, nested arrays, every tensor type, another alignment, version 2, a split
    /// model and an empty file: together they reach every line of the reader.
    static let all: [Seed] = [
        Seed(model), Seed(values), Seed(tensorTypes), Seed(aligned), Seed(GGUFBuilder()), split,
    ]

    private static var model: GGUFBuilder {
        var builder = GGUFBuilder()
        builder.add("general.architecture", .string("deepseek4"))
        builder.add("deepseek4.block_count", .uint32(2))
        builder.add("deepseek4.rope.freq_base", .float32(10000))
        builder.add("deepseek4.attention.compress_ratios", .array(5, [.int32(0), .int32(4)]))
        builder.add("tokenizer.ggml.tokens", .strings(["<s>", "a", "b", "ab", "Ġ"]))
        builder.add("tokenizer.ggml.add_bos_token", .bool(true))
        builder.addTensor("token_embd.weight", [32, 5], type: 0, byteCount: 640)
        builder.addTensor("output.weight", [32, 5], type: 8, byteCount: 170)
        builder.addTensor("blk.0.ffn_gate_exps.weight", [32, 2, 3], type: 39, byteCount: 102)
        return builder
    }

    private static var values: GGUFBuilder {
        var builder = GGUFBuilder()
        builder.version = 2
        builder.add("u8", .uint8(200))
        builder.add("i8", .int8(-3))
        builder.add("u16", .uint16(60000))
        builder.add("i16", .int16(-300))
        builder.add("u32", .uint32(4_000_000_000))
        builder.add("i32", .int32(-70000))
        builder.add("u64", .uint64(.max))
        builder.add("i64", .int64(.min))
        builder.add("f32", .float32(1.5))
        builder.add("f64", .float64(-2.5))
        builder.add("bool", .bool(false))
        builder.add("string", .string("text"))
        builder.add("empty", .string(""))
        builder.add("bools", .array(7, [.bool(true), .bool(false)]))
        builder.add("doubles", .array(12, [.float64(1), .float64(2)]))
        builder.add("longs", .array(10, [.uint64(1), .uint64(.max)]))
        builder.add("none", .array(8, []))
        builder.add("pairs", .array(9, [.array(4, [.uint32(1)]), .strings(["x", "yz"])]))
        builder.add("deep", .array(9, [.array(9, [.array(9, [.array(0, [.uint8(1)])])])]))
        return builder
    }

    private static var tensorTypes: GGUFBuilder {
        var builder = GGUFBuilder()
        let layouts: [(type: UInt32, elements: UInt64, bytes: Int)] = [
            (0, 1, 4), (1, 1, 2), (2, 32, 18), (3, 32, 20), (6, 32, 22), (7, 32, 24), (8, 32, 34),
            (9, 32, 40), (10, 256, 84), (11, 256, 110), (12, 256, 144), (13, 256, 176),
            (14, 256, 210), (15, 256, 292), (16, 256, 66), (17, 256, 74), (18, 256, 98),
            (19, 256, 50), (20, 32, 18), (21, 256, 110), (22, 256, 82), (23, 256, 136), (24, 1, 1),
            (25, 1, 2), (26, 1, 4), (27, 1, 8), (28, 1, 8), (29, 256, 56), (30, 1, 2),
            (34, 256, 54), (35, 256, 66), (39, 32, 17), (40, 64, 36), (41, 128, 18),
        ]
        for layout in layouts {
            builder.addTensor(
                "t\(layout.type)", [layout.elements, 2], type: layout.type,
                byteCount: layout.bytes * 2)
        }
        return builder
    }

    private static var aligned: GGUFBuilder {
        var builder = GGUFBuilder()
        builder.alignment = 128
        builder.add("general.alignment", .uint32(128))
        builder.addTensor("second", [3], type: 0, byteCount: 12, offset: 256)
        builder.addTensor("first", [1, 1, 1, 1], type: 24, byteCount: 1, offset: 0)
        return builder
    }

    private static var split: Seed {
        let count: UInt16 = 3
        var builders: [String: GGUFBuilder] = [:]
        for i in 0..<count {
            var builder = GGUFBuilder()
            builder.add("split.no", .uint16(i))
            builder.add("split.count", .uint16(count))
            builder.add("split.tensors.count", .int32(Int32(count)))
            builder.addTensor("blk.\(i)", [4], type: 0, byteCount: 16)
            builders["m-0000\(i + 1)-of-00003.gguf"] = builder
        }
        return Seed(path: "m-00001-of-00003.gguf", builders)
    }
}
