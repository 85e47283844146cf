import CKernels

/// How much each input of each matrix matters: Σ x² over everything it was fed, for quantisation
/// weighted by importance.
public final class ImportanceRecorder {
    /// Of one tensor of the file. Routed experts have a matrix each, as have the groups of the output
    /// projection; all others one.
    public final class Entry {
        public let name: String
        public let columns: Int
        public let matrices: Int
        /// [matrices, columns]
        public let sums: UnsafeMutablePointer<Double>
        /// Inputs seen by each matrix.
        public let counts: UnsafeMutablePointer<Double>

        init(name: String, columns: Int, matrices: Int) {
            self.name = name
            self.columns = columns
            self.matrices = matrices
            sums = .allocate(capacity: columns * matrices)
            sums.initialize(repeating: 0, count: columns * matrices)
            counts = .allocate(capacity: matrices)
            counts.initialize(repeating: 0, count: matrices)
        }

        deinit {
            sums.deallocate()
            counts.deallocate()
        }

        fileprivate func add(_ squares: UnsafePointer<Double>, matrix: Int, inputs: Int) {
            let out = sums + matrix * columns
            for i in 0..<columns { out[i] += squares[i] }
            counts[matrix] += Double(inputs)
        }
    }

    /// In the order in which they were first fed.
    public private(set) var entries: [Entry] = []
    private var places: [String: Int] = [:]

    public init() {}

    private func entry(_ matrix: Matrix, count: Int) -> Entry {
        if let place = places[matrix.name] { return entries[place] }
        let entry = Entry(name: matrix.name, columns: matrix.columns, matrices: count)
        places[matrix.name] = entries.count
        entries.append(entry)
        return entry
    }

    /// Σ over `rows` of x², for columns [from, from + width).
    private func squares(_ x: Tensor, rows: some Sequence<Int>, from: Int, width: Int) -> [Double] {
        var out = [Double](repeating: 0, count: width)
        for row in rows {
            let values = x.floats + row * x.width + from
            for i in 0..<width { out[i] += Double(values[i]) * Double(values[i]) }
        }
        return out
    }

    /// Every row of `x` went through each of these matrices.
    func record(_ x: Tensor, _ matrices: [Matrix]) {
        let sums = squares(x, rows: 0..<x.rows, from: 0, width: x.width)
        for matrix in matrices { entry(matrix, count: 1).add(sums, matrix: 0, inputs: x.rows) }
    }

    /// Group g of every row went through group g of the matrix.
    func recordGroups(_ x: Tensor, _ matrix: Matrix, groups: Int) {
        let entry = entry(matrix, count: groups)
        for group in 0..<groups {
            let sums = squares(x, rows: 0..<x.rows, from: group * matrix.columns, width: matrix.columns)
            entry.add(sums, matrix: group, inputs: x.rows)
        }
    }

    /// Each row went through the experts its routing names. What `down` is fed does not leave the
    /// kernel, so gate and up are computed once more, expert by expert.
    func record(_ call: ExpertsCall, _ backend: CPUBackend) throws {
        let used = call.routing.ids.width, ids = call.routing.ids.ints, weights = call.routing.weights.floats
        var places = [[Int]](repeating: [], count: call.gate.count)
        for place in 0..<call.x.rows * used { places[Int(ids[place])].append(place) }
        let gateUp = [call.gate, call.up].map { entry($0, count: $0.count) }
        let down = entry(call.down, count: call.down.count)
        for (expert, places) in places.enumerated() where !places.isEmpty {
            let sums = squares(call.x, rows: places.lazy.map { $0 / used }, from: 0, width: call.x.width)
            for entry in gateUp { entry.add(sums, matrix: expert, inputs: places.count) }
            let h = try backend.expertInner(call, expert, tokens: places.map { $0 / used })
            for (row, place) in places.enumerated() {
                for i in 0..<h.width { h.floats[row * h.width + i] *= weights[place] }
            }
            down.add(squares(h, rows: 0..<h.rows, from: 0, width: h.width), matrix: expert, inputs: places.count)
        }
    }
}

extension CPUBackend {
    /// SwiGLU of one expert's gate and up for rows `tokens` of the call's x: [tokens, inner].
    fileprivate func expertInner(_ call: ExpertsCall, _ expert: Int, tokens: [Int]) throws -> Tensor {
        let x = try arena.tensor(tokens.count, call.x.width)
        for (row, token) in tokens.enumerated() {
            (x.floats + row * x.width).update(from: call.x.floats + token * x.width, count: x.width)
        }
        let matrices = [call.gate, call.up].map { $0[expert * $0.rows..<(expert + 1) * $0.rows] }
        let out = try matrices.map { try arena.tensor(tokens.count, $0.rows) }
        let jobs = zip(matrices, out).map { matrix, y in
            ck_matmul_job(w: matrix.c, x: x.floats, ldx: Int64(x.width), y: y.floats, ldy: Int64(y.width))
        }
        matmul(pool, jobs, Int32(jobs.count), Int64(tokens.count))
        experts_swiglu(pool, out[0].floats, out[1].floats, Int64(tokens.count), Int64(out[0].width), call.clamp,
                       out[0].floats)
        return out[0]
    }
}
