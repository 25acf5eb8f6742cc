// One image from a package of `rcdeploy export --format coreml`, for few-step students: no guidance, DDIM.
// Written against Core ML's documented interface; neither compiled nor run: see ios.md.
import CoreML
import Foundation

enum DrawError: Error { case unsupported(String) }

/// folder: the package. Models are compiled when they are opened: keep the object.
final class Draw {
    /// Shape of `noise`: rows, channels, height, width.
    let latentShape: [Int]
    private let schedule: Schedule
    private let steps: Int
    private let scalingFactor: Float
    private let textEncoder: MLModel, unet: MLModel, decoder: MLModel

    init(folder: URL, units: MLComputeUnits = .all) throws {
        let data = try Data(contentsOf: folder.appendingPathComponent("manifest.json"))
        guard let manifest = try JSONSerialization.jsonObject(with: data) as? [String: Any],
              let facts = manifest["facts"] as? [String: Any], facts["format"] as? String == "coreml",
              let sampling = facts["sampling"] as? [String: Any], let steps = sampling["num_inference_steps"] as? Int,
              let noise = manifest["noise_schedule"] as? [String: Any],
              let latents = manifest["latents"] as? [String: Any], let factor = latents["scaling_factor"] as? Double,
              let networks = manifest["onnx"] as? [String: [String: [String: [String: Any]]]],
              let shape = networks["unet"]?["inputs"]?["sample"]?["shape"] as? [Int]
        else { throw DrawError.unsupported("no manifest of a Core ML package") }
        guard sampling["sampler"] as? String == "ddim", shape[0] == 1
        else { throw DrawError.unsupported("this example draws with ddim and without guidance") }
        self.steps = steps
        latentShape = shape
        scalingFactor = Float(factor)
        schedule = try Schedule(noise)
        let settings = MLModelConfiguration()
        settings.computeUnits = units
        func open(_ name: String) throws -> MLModel {
            let package = folder.appendingPathComponent(name).appendingPathComponent("model.mlpackage")
            return try MLModel(contentsOf: MLModel.compileModel(at: package), configuration: settings)
        }
        textEncoder = try open("text_encoder")
        unet = try open("unet")
        decoder = try open("vae_decoder")
    }

    /// ids: the prompt's tokens as tokenizer/tokenizer.json makes them, begin and end included, padded to the context
    /// with the end token. noise: normal, as many as latentShape has. Returns red, green and blue from 0 to 1, planes of
    /// height x width.
    func draw(ids: [Int32], noise: [Float]) throws -> [Float] {
        let tokens = MLMultiArray(MLShapedArray(scalars: ids, shape: [1, ids.count]))
        let text = try run(textEncoder, ["input_ids": tokens], "last_hidden_state")
        var x = noise
        for (t, previous) in schedule.steps(steps) {
            let inputs = [
                "sample": array(x),
                "timestep": MLMultiArray(MLShapedArray(scalars: [Int32(t)], shape: [1])),
                "encoder_hidden_states": text,
            ]
            let prediction = floats(try run(unet, inputs, "out_sample"))
            x = schedule.step(x, prediction, t, previous)
        }
        let latents = array(x.map { $0 / scalingFactor })
        return floats(try run(decoder, ["latent_sample": latents], "sample")).map { min(max($0 / 2 + 0.5, 0), 1) }
    }

    private func array(_ values: [Float]) -> MLMultiArray {
        MLMultiArray(MLShapedArray(scalars: values, shape: latentShape))
    }

    private func floats(_ array: MLMultiArray) -> [Float] {
        MLShapedArray<Float>(converting: array).scalars
    }

    private func run(_ model: MLModel, _ inputs: [String: MLMultiArray], _ output: String) throws -> MLMultiArray {
        let features = try MLDictionaryFeatureProvider(dictionary: inputs.mapValues { MLFeatureValue(multiArray: $0) })
        guard let result = try model.prediction(from: features).featureValue(for: output)?.multiArrayValue
        else { throw DrawError.unsupported("no output \(output)") }
        return result
    }
}

/// DDIM without fresh noise, on diffusers' scheduler_config.json.
struct Schedule {
    private let total: Int, offset: Int, trailing: Bool, predictsVelocity: Bool
    private var alphasCumprod: [Double] = []
    private let last: Double

    init(_ config: [String: Any]) throws {
        let spacing = config["timestep_spacing"] as? String ?? "leading"
        let unknown = ["rescale_betas_zero_snr", "clip_sample", "thresholding"].filter { config[$0] as? Bool == true }
        guard unknown.isEmpty, config["beta_schedule"] as? String == "scaled_linear", spacing != "linspace",
              let total = config["num_train_timesteps"] as? Int,
              let start = config["beta_start"] as? Double, let end = config["beta_end"] as? Double
        else { throw DrawError.unsupported("this example does not know this noise schedule: \(unknown) \(spacing)") }
        self.total = total
        offset = config["steps_offset"] as? Int ?? 0
        trailing = spacing == "trailing"
        predictsVelocity = config["prediction_type"] as? String == "v_prediction"
        var product = 1.0
        for t in 0..<total {
            let root = start.squareRoot() + (end.squareRoot() - start.squareRoot()) * Double(t) / Double(total - 1)
            product *= 1 - root * root
            alphasCumprod.append(product)
        }
        last = config["set_alpha_to_one"] as? Bool ?? true ? 1 : alphasCumprod[0]
    }

    /// (timestep, the one that its step leads to; negative: none) of each step.
    func steps(_ count: Int) -> [(Int, Int)] {
        (0..<count).map { i in
            let t = trailing
                ? Int((Double(total) - Double(i * total) / Double(count)).rounded(.toNearestOrEven)) - 1
                : (count - 1 - i) * (total / count) + offset
            return (t, t - total / count)
        }
    }

    func step(_ x: [Float], _ prediction: [Float], _ t: Int, _ previous: Int) -> [Float] {
        let a = Float(alphasCumprod[t].squareRoot()), s = Float((1 - alphasCumprod[t]).squareRoot())
        let next = previous >= 0 ? alphasCumprod[previous] : last
        let aNext = Float(next.squareRoot()), sNext = Float((1 - next).squareRoot())
        return zip(x, prediction).map { value, predicted in
            let noise = predictsVelocity ? a * predicted + s * value : predicted
            let clean = predictsVelocity ? a * value - s * predicted : (value - s * noise) / a
            return aNext * clean + sNext * noise
        }
    }
}
