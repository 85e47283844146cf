import Compute
#if canImport(Glibc)
import Glibc
#else
import Darwin
#endif

/// Rotary frequencies, one a pair of values: [rope / 2].
///
/// Sliding layers rotate at `ropeBase`; layers with compression at `compressedRopeBase` with YaRN,
/// which stretches slow pairs by `factor` and leaves fast ones, with a ramp between the pairs that
/// turn `betaSlow` and `betaFast` times over the original context. Source: report §4.2.1.
public enum RoPE {
    public static func frequencies(_ c: Configuration, compressed: Bool) -> Vector {
        let dim = Double(c.ropeDim)
        let base = compressed ? c.compressedRopeBase : c.ropeBase
        var inverse = (0..<c.ropeDim / 2).map { 1 / pow(base, Double(2 * $0) / dim) }
        if compressed, let yarn = c.yarn {
            func pair(turning turns: Double) -> Double {
                dim * log(Double(yarn.originalContext) / (turns * 2 * Double.pi)) / (2 * log(base))
            }
            let low = max(pair(turning: yarn.betaFast).rounded(.down), 0)
            var high = min(pair(turning: yarn.betaSlow).rounded(.up), dim - 1)
            if low == high { high += 0.001 }
            for i in inverse.indices {
                let ramp = min(max((Double(i) - low) / (high - low), 0), 1)
                inverse[i] = inverse[i] / yarn.factor * ramp + inverse[i] * (1 - ramp)
            }
        }
        return Vector(name: compressed ? "rope.compressed" : "rope.window", inverse.map { Float($0) })
    }
}
