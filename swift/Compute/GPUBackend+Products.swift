import GPUSources

/// y = matrix · x; in `groups` groups of rows that each read their own slice of x.
struct Product {
    let matrix: Matrix
    let y: Tensor
    let groups: Int

    var rows: Int { matrix.rows }
    var columns: Int { matrix.columns }
    var groupRows: Int { matrix.rows / groups }
}

/// Which kernels multiply: for many tokens tiles on the matrix units, for few ones those that stream weights; where
/// memory is the device's own, others of both kinds (docs/decisions/own-memory.md).
extension GPUBackend {
    /// Above this many tokens weights are read once a tile, not once for four tokens.
    static let fewTokens = 8
    /// Up to so many tokens integer kernels, eight tokens at a time, are no slower than tiles that are nearly empty.
    private static let integerTokens = 40
    static let tileTokens = 64
    static let tileRows = 128
    static let wideTokens = 128
    static let wideColumns = 64
    private static let matvecRows = 8

    private static let tileTypes = Set(
        [GPU_F16, GPU_Q8_0, GPU_Q8_0_PLANES, GPU_MXFP4, GPU_Q2_K, GPU_Q2_K_PLANES, GPU_Q4_K, GPU_IQ2_XXS,
         GPU_IQ2_XXS_PLANES].map { UInt32($0) })
    private static let commonTypes = Set([GPU_F32, GPU_F16, GPU_Q8_0_PLANES].map { UInt32($0) })
    private static let wideTypes = Set([GPU_F16, GPU_Q8_0_PLANES].map { UInt32($0) })

    func usesTiles(_ weight: GPUWeight, tokens: Int) -> Bool {
        !isExact && tokens > Self.fewTokens && Self.tileTypes.contains(weight.type)
    }

    /// Kernels for planes of weights.
    var usesOwnMemory: Bool { !isExact && !device.isUnified }

    private func usesWide(_ product: Product, tokens: Int) -> Bool {
        usesOwnMemory && tokens > Self.fewTokens && Self.wideTypes.contains(weights[product.matrix].type)
            && product.columns % Self.wideColumns == 0
            && (product.groups == 1 || product.groupRows % Self.tileRows == 0)
    }

    func multiply(_ x: Tensor, _ products: [Product]) throws {
        let launches = stride(from: 0, to: products.count, by: GPU_MOST_JOBS).map {
            products[$0..<min($0 + GPU_MOST_JOBS, products.count)]
        }
        if x.rows > Self.fewTokens, launches.allSatisfy({ integerTileRows(x, $0) != nil }) {
            for some in launches { try multiplyFew(x, some) }
            return
        }
        var few: [Product] = [], wide: [Product] = []
        for product in products {
            if usesWide(product, tokens: x.rows) {
                wide.append(product)
            } else if usesTiles(weights[product.matrix], tokens: x.rows),
                      product.groups == 1 || product.groupRows % Self.tileRows == 0 {  // a tile of rows reads one slice
                multiplyTiles(x, product)
            } else {
                few.append(product)
            }
        }
        try multiplyWide(x, wide)
        for first in stride(from: 0, to: few.count, by: GPU_MOST_JOBS) {
            try multiplyFew(x, few[first..<min(first + GPU_MOST_JOBS, few.count)])
        }
    }

    private func multiplyTiles(_ x: Tensor, _ product: Product) {
        let w = weights[product.matrix]
        dispatch(.matmul_tile,
                 ((product.rows + Self.tileRows - 1) / Self.tileRows, (x.rows + Self.tileTokens - 1) / Self.tileTokens, 1),
                 [w.address, x.floats.raw, product.y.floats.raw],
                 gpu_matmul(type: w.type, n: UInt32(x.rows), rows: UInt32(product.rows), columns: UInt32(product.columns),
                            ldx: UInt32(x.width), ldy: UInt32(product.rows), group_rows: UInt32(product.groupRows),
                            gather: 0, plane: w.plane))
    }

    // MARK: Several matrices a launch

    /// What a kernel of up to eight matrices is called with.
    private struct Launch {
        var call = gpu_matvec()
        /// Of the matrices, eight in any case.
        var addresses: [UnsafeRawPointer?] = []
        /// Of rows, of all matrices.
        var tiles = 0
        /// Outputs are said as distances from it.
        let base: UnsafeMutablePointer<Float>
    }

    private func launch(_ products: ArraySlice<Product>, tokens: Int, ldx: Int, tileRows: [Int], slices: [Int]) -> Launch {
        var launch = Launch(base: products.map(\.y.floats).min()!)
        launch.call.n = UInt32(tokens)
        launch.call.ldx = UInt32(ldx)
        launch.call.jobs = UInt32(products.count)
        for (slot, product) in products.enumerated() {
            let w = weights[product.matrix]
            let job = gpu_matrix_job(
                type: w.type, rows: UInt32(product.rows), columns: UInt32(product.columns),
                group_rows: UInt32(product.groupRows), first_tile: UInt32(launch.tiles), tile_rows: UInt32(tileRows[slot]),
                slices: UInt32(slices[slot]), unused: 0, plane: w.plane, out: UInt64(product.y.floats - launch.base))
            withUnsafeMutableBytes(of: &launch.call.job) { $0.bindMemory(to: gpu_matrix_job.self)[slot] = job }
            launch.tiles += (product.rows - 1) / tileRows[slot] + 1
            launch.addresses.append(w.address)
        }
        while launch.addresses.count < GPU_MOST_JOBS { launch.addresses.append(launch.addresses[0]) }
        return launch
    }

    // MARK: Many tokens

    /// x as halfs in the order that wide products read it; `order`: of sorted assignments, `used` a row of x.
    func pack(_ x: Tensor, order: IntTensor? = nil, used: Int = 0) throws -> (halfs: UnsafeRawPointer, stride: Int) {
        let count = order?.count ?? x.rows, stride = (count + 7) / 8 * 8
        let out = try arena.tensor(stride * x.width / 2)
        dispatch(.half_pack, ((count + 255) / 256, x.width / Self.wideColumns, 1),
                 [x.floats.raw, order?.ints.raw ?? x.floats.raw, out.floats.raw],
                 gpu_pack(n: UInt32(count), ldx: UInt32(x.width), stride: UInt32(stride), gather: UInt32(used)))
        return (out.floats.raw, stride)
    }

    private func multiplyWide(_ x: Tensor, _ products: [Product]) throws {
        guard !products.isEmpty else { return }
        let mark = arena.mark()
        defer { arena.release(to: mark) }
        let packed = try pack(x)
        for first in stride(from: 0, to: products.count, by: GPU_MOST_JOBS) {
            let some = products[first..<min(first + GPU_MOST_JOBS, products.count)]
            let launch = launch(some, tokens: x.rows, ldx: packed.stride,
                                tileRows: some.map { _ in Self.tileRows }, slices: some.map { _ in 1 })
            dispatch(.matmul_wide, (launch.tiles, (x.rows + Self.wideTokens - 1) / Self.wideTokens, 1),
                     launch.addresses + [packed.halfs, launch.base.raw], launch.call)
        }
    }

    // MARK: Few tokens

    private func multiplyFew(_ x: Tensor, _ products: ArraySlice<Product>) throws {
        // A simdgroup's two rows read one slice of x.
        precondition(products.allSatisfy { $0.groups == 1 || $0.groupRows % 2 == 0 })
        if let tileRows = integerTileRows(x, products) { return try multiplyIntegers(x, products, tileRows) }
        let launch = launch(products, tokens: x.rows, ldx: x.width,
                            tileRows: products.map { _ in Self.matvecRows }, slices: products.map { _ in 1 })
        let isCommon = products.allSatisfy { Self.commonTypes.contains(weights[$0.matrix].type) }
        let isOne = x.rows == 1
        dispatch(!isOne ? .matvec_4 : isCommon ? .matvec_common : .matvec_1,
                 (launch.tiles, isOne ? 1 : (x.rows + 3) / 4, 1), launch.addresses + [x.floats.raw, launch.base.raw],
                 launch.call)
    }

    /// How the integer kernels divide a row: slices of columns, one a simdgroup, of which a threadgroup has eight.
    private static func slices(columns: Int, tokens: Int) -> Int {
        if tokens > 1 { return columns >= 4096 ? 8 : columns >= 2048 ? 4 : 1 }
        return columns > 4096 ? 8 : columns > 2048 ? 4 : columns > 1024 ? 2 : 1
    }

    /// Threadgroups that keep every multiprocessor busy.
    private static let manyTiles = 256

    /// Rows of a tile of each of `products`. One token: enough that threadgroups repeat little of the work on
    /// activations, few enough that there are some for every multiprocessor. nil: they are not for these kernels.
    private func integerTileRows(_ x: Tensor, _ products: ArraySlice<Product>) -> [Int]? {
        guard x.rows <= Self.integerTokens, usesOwnMemory else { return nil }
        let isOne = x.rows == 1
        let least = products.map { (isOne ? 32 : 128) / Self.slices(columns: $0.columns, tokens: x.rows) }
        let tiles = zip(products, least).reduce(0) { $0 + ($1.0.rows - 1) / $1.1 + 1 }
        let steps = isOne ? [8, 4, 2].first { tiles / $0 >= Self.manyTiles } ?? 1 : 1
        for (product, rows) in zip(products, least) {
            guard Self.commonTypes.contains(weights[product.matrix].type), product.rows % 4 == 0,
                  isOne || product.columns % 128 == 0,
                  product.groups == 1 || product.groupRows % (rows * steps) == 0 else { return nil }
        }
        return least.map { $0 * steps }
    }

    private func multiplyIntegers(_ x: Tensor, _ products: ArraySlice<Product>, _ tileRows: [Int]) throws {
        let launch = launch(products, tokens: x.rows, ldx: x.width, tileRows: tileRows,
                            slices: products.map { Self.slices(columns: $0.columns, tokens: x.rows) })
        guard x.rows > 1 else {
            return dispatch(.matvec_int8, (launch.tiles, 1, 1), launch.addresses + [x.floats.raw, launch.base.raw], launch.call)
        }
        let mark = arena.mark()
        defer { arena.release(to: mark) }
        let eights = (x.rows + 7) / 8
        let bytes = try arena.tensor(eights * 8 * x.width / 2), scales = try arena.tensor(eights * 8 * x.width / 32)
        dispatch(.int8_pack, ((x.width + 127) / 128, eights, 1), [x.floats.raw, bytes.floats.raw, scales.floats.raw],
                 gpu_pack(n: UInt32(x.rows), ldx: UInt32(x.width), stride: 0, gather: 0))
        dispatch(.matvec_int8_many, (eights, launch.tiles, 1),
                 launch.addresses + [x.floats.raw, bytes.floats.raw, scales.floats.raw, launch.base.raw], launch.call)
    }
}
