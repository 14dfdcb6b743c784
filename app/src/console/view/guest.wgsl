// A guest's picture or pointer on a rectangle of the window.

struct Quad {
    // Clip space: left, lower edge, width, height.
    place: vec4<f32>,
    // Guest pixels: width, height; window pixels for a guest pixel; 1 when that is a whole number.
    size: vec2<f32>,
    scale: f32,
    nearest: f32,
}

@group(0) @binding(0) var<uniform> quad: Quad;
@group(0) @binding(1) var image: texture_2d<f32>;
@group(0) @binding(2) var linear: sampler;

struct Corner {
    @builtin(position) position: vec4<f32>,
    @location(0) at: vec2<f32>,
}

@vertex
fn corner(@builtin(vertex_index) index: u32) -> Corner {
    let unit = vec2<f32>(f32(index & 1u), f32(index >> 1u));
    var out: Corner;
    out.position = vec4<f32>(quad.place.xy + unit * quad.place.zw, 0.0, 1.0);
    // Guest pixels, from the upper left.
    out.at = vec2<f32>(unit.x, 1.0 - unit.y) * quad.size;
    return out;
}

fn colour(at: vec2<f32>) -> vec4<f32> {
    if quad.nearest > 0.5 {
        return textureLoad(image, vec2<i32>(clamp(floor(at), vec2<f32>(0.0), quad.size - 1.0)), 0);
    }
    // Sharp-bilinear: blend over one window pixel, not over one guest pixel, where the picture is enlarged.
    let texel = floor(at);
    let region = max(0.5 - 0.5 / quad.scale, 0.0);
    let off = fract(at) - 0.5;
    let blend = (off - clamp(off, vec2<f32>(-region), vec2<f32>(region))) * max(quad.scale, 1.0) + 0.5;
    return textureSampleLevel(image, linear, (texel + blend) / quad.size, 0.0);
}

@fragment
fn picture(in: Corner) -> @location(0) vec4<f32> {
    return vec4<f32>(colour(in.at).rgb, 1.0);
}

@fragment
fn pointer(in: Corner) -> @location(0) vec4<f32> {
    return colour(in.at);
}
