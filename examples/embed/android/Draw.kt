// One image from a package of `rcdeploy export --format executorch`, for few-step students: no guidance, DDIM.
// Compiled against a stub of ExecuTorch's Kotlin interface, never run on a device: see android.md.
package rcdeploy

import java.io.Closeable
import java.io.File
import kotlin.math.sqrt
import org.json.JSONObject
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

/** folder: the package, unpacked into the app's files: ExecuTorch opens paths, not assets. */
class Draw(folder: File) : Closeable {
    private val manifest = JSONObject(File(folder, "manifest.json").readText())
    private val facts = manifest.getJSONObject("facts")
    private val schedule = Schedule(manifest.getJSONObject("noise_schedule"))
    private val scalingFactor = manifest.getJSONObject("latents").getDouble("scaling_factor").toFloat()
    private val steps = facts.getJSONObject("sampling").getInt("num_inference_steps")
    private val textEncoder = Module.load(File(folder, "text_encoder/model.pte").path)
    private val unet = Module.load(File(folder, "unet/model.pte").path)
    private val decoder = Module.load(File(folder, "vae_decoder/model.pte").path)

    /** Shape of `noise`: rows, channels, height, width. */
    val latentShape: LongArray = manifest.getJSONObject("onnx").getJSONObject("unet").getJSONObject("inputs")
        .getJSONObject("sample").getJSONArray("shape").let { a -> LongArray(a.length()) { a.getLong(it) } }

    init {
        val sampler = facts.getJSONObject("sampling").getString("sampler")
        require(facts.getString("format") == "executorch") { "not a package for ExecuTorch" }
        require(sampler == "ddim" && latentShape[0] == 1L) { "this example draws with ddim and without guidance" }
    }

    /**
     * ids: the prompt's tokens as tokenizer/tokenizer.json makes them, begin and end included, padded to the context
     * with the end token. noise: normal, as many as latentShape has. Returns red, green and blue from 0 to 1, planes
     * of height x width.
     */
    fun draw(ids: LongArray, noise: FloatArray): FloatArray {
        val text = run(textEncoder, Tensor.fromBlob(ids, longArrayOf(1, ids.size.toLong())))
        var x = noise
        for ((t, previous) in schedule.steps(steps)) {
            val timestep = Tensor.fromBlob(longArrayOf(t.toLong()), longArrayOf())
            val prediction = run(unet, Tensor.fromBlob(x, latentShape), timestep, text).dataAsFloatArray
            x = schedule.step(x, prediction, t, previous)
        }
        val latents = FloatArray(x.size) { x[it] / scalingFactor }
        val pixels = run(decoder, Tensor.fromBlob(latents, latentShape)).dataAsFloatArray
        return FloatArray(pixels.size) { (pixels[it] / 2 + 0.5f).coerceIn(0f, 1f) }
    }

    private fun run(module: Module, vararg inputs: Tensor): Tensor =
        module.forward(*inputs.map { EValue.from(it) }.toTypedArray())[0].toTensor()

    override fun close() {
        listOf(textEncoder, unet, decoder).forEach { it.destroy() }
    }
}

/** DDIM without fresh noise, on diffusers' scheduler_config.json. */
class Schedule(config: JSONObject) {
    private val total = config.getInt("num_train_timesteps")
    private val offset = config.optInt("steps_offset", 0)
    private val spacing = config.optString("timestep_spacing", "leading")
    private val predictsVelocity = config.getString("prediction_type") == "v_prediction"
    private val alphasCumprod = DoubleArray(total)
    private val last: Double

    init {
        val names = listOf("rescale_betas_zero_snr", "clip_sample", "thresholding").filter { config.optBoolean(it, false) }
        require(names.isEmpty() && config.getString("beta_schedule") == "scaled_linear" && spacing != "linspace") {
            "this example does not know the noise schedule $names ${config.getString("beta_schedule")} $spacing"
        }
        val first = sqrt(config.getDouble("beta_start"))
        val range = sqrt(config.getDouble("beta_end")) - first
        var product = 1.0
        for (t in 0 until total) {
            val root = first + range * t / (total - 1)
            product *= 1 - root * root
            alphasCumprod[t] = product
        }
        last = if (config.optBoolean("set_alpha_to_one", true)) 1.0 else alphasCumprod[0]
    }

    /** (timestep, the one that its step leads to; negative: none) of each step. */
    fun steps(count: Int): List<Pair<Int, Int>> = List(count) { i ->
        val t = if (spacing == "trailing") Math.rint(total - i * total.toDouble() / count).toInt() - 1
        else (count - 1 - i) * (total / count) + offset
        t to t - total / count
    }

    fun step(x: FloatArray, prediction: FloatArray, t: Int, previous: Int): FloatArray {
        val a = sqrt(alphasCumprod[t]).toFloat()
        val s = sqrt(1 - alphasCumprod[t]).toFloat()
        val aNext = if (previous >= 0) alphasCumprod[previous] else last
        return FloatArray(x.size) {
            val noise = if (predictsVelocity) a * prediction[it] + s * x[it] else prediction[it]
            val clean = if (predictsVelocity) a * x[it] - s * prediction[it] else (x[it] - s * noise) / a
            sqrt(aNext).toFloat() * clean + sqrt(1 - aNext).toFloat() * noise
        }
    }
}
