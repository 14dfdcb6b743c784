//! The demo's own typeface: every glyph is a few strokes on a small grid, drawn with a round, anti-aliased pen.
//!
//! A glyph is a string of points, two characters each: column 0–6 and row 0–g (0 the top of capitals, 4 of small
//! letters, c the base line, g the deepest descender). `~` before a point makes it the control point of a curve to the
//! next one; a space lifts the pen. A stroke of two equal points is a dot.

/// Units from one character to the next.
pub const ADVANCE: usize = 9;
/// Units from the top of a line to its end.
pub const HEIGHT: usize = 19;
/// Straight pieces that a curve is drawn with.
const CURVE_STEPS: usize = 6;
const MAX_PIECES: usize = 64;

/// Glyphs from space on, in ASCII order.
#[rustfmt::skip]
const ASCII: [&str; 95] = [
    "", // space
    "3038 3c3c", // !
    "2023 4043", // "
    "201c 504c 0464 0868", // #
    "62~5030~0003~0636~6669~6c3c~1c0a 303c", // $
    "600c 10~0002~0414~2422~2010 58~484a~4c5c~6c6a~6858", // %
    "6c13~1030~5052~5409~0c2c~5c67", // &
    "3033", // '
    "40~2326~2a4d", // (
    "20~4346~4a2d", // )
    "3339 1458 5418", // *
    "3339 0666", // +
    "3c2f", // ,
    "1656", // -
    "3c3c", // .
    "610d", // /
    "30~0006~0c3c~6c66~6030 4438", // 0
    "12303c 0c6c", // 1
    "03~0030~6063~660c6c", // 2
    "01~1030~6063~6636~6669~6c3c~1c0b", // 3
    "4c400868", // 4
    "60000535~6568~6c3c~1c0b", // 5
    "50~0008~0c3c~6c68~6434~0408", // 6
    "00602c", // 7
    "30~0003~0636~6663~6030 36~0609~0c3c~6c69~6636", // 8
    "1c~6c64~6030~0004~0838~6864", // 9
    "3535 3b3b", // :
    "3535 3b2e", // ;
    "52175c", // <
    "0565 0969", // =
    "12571c", // >
    "02~0030~6063~6638 3c3c", // ?
    "6c3c~0c06~0030~6066~6a5a~4a47 47~4535~2527~2a3a~4a47", // @
    "0c306c 1858", // A
    "0636~6669~6c3c0c0030~5053~5636", // B
    "62~5030~0006~0c3c~5c6a", // C
    "0020~6066~6c2c0c00", // D
    "60000c6c 0656", // E
    "60000c 0656", // F
    "62~5030~0006~0c3c~6c6737", // G
    "000c 606c 0666", // H
    "1050 303c 1c5c", // I
    "6069~6c3c~0c09", // J
    "000c 6007 256c", // K
    "000c6c", // L
    "0c0036606c", // M
    "0c006c60", // N
    "30~0006~0c3c~6c66~6030", // O
    "0c0030~6063~663606", // P
    "30~0006~0c3c~6c66~6030 496d", // Q
    "0c0030~6063~663606 366c", // R
    "62~5030~0003~0636~6669~6c3c~1c0a", // S
    "0060 303c", // T
    "0008~0c3c~6c6860", // U
    "003c60", // V
    "001c355c60", // W
    "006c 600c", // X
    "003660 363c", // Y
    "00600c6c", // Z
    "40202d4d", // [
    "016d", // \
    "20404d2d", // ]
    "143054", // ^
    "0e6e", // _
    "2042", // `
    "68~6434~0408~0c3c~6c68 646c", // a
    "000c 68~6434~0408~0c3c~6c68", // b
    "65~5434~0408~0c3c~5c6b", // c
    "606c 68~6434~0408~0c3c~6c68", // d
    "0868~6434~0408~0c3c~5c6b", // e
    "60~30333c 1454", // f
    "68~6434~0408~0c3c~6c68 646d~6g3g~1g0f", // g
    "000c 08~0434~64686c", // h
    "14343c 1c5c 3030", // i
    "24444d~4g2g~1g0f 4040", // j
    "000c 6409 276c", // k
    "10303c 1c5c", // l
    "040c 06~1424~34363c 36~4454~64666c", // m
    "040c 08~0434~64686c", // n
    "68~6434~0408~0c3c~6c68", // o
    "040g 68~6434~0408~0c3c~6c68", // p
    "646g 68~6434~0408~0c3c~6c68", // q
    "040c 08~0444~5465", // r
    "65~5434~0406~0838~686a~6c3c~1c0b", // s
    "3039~3c5c 1454", // t
    "0408~0c3c~6c68 646c", // u
    "043c64", // v
    "041c375c64", // w
    "046c 640c", // x
    "043c 641g", // y
    "04640c6c", // z
    "50~3033~3616 16~3639~3d5d", // {
    "303e", // |
    "10~3033~3656 56~3639~3d1d", // }
    "07~1436~5865", // ~
];
/// A tick, a cross and a dot, for results.
const TICK: &str = "072b62";
const CROSS: &str = "145a 541a";
const BULLET: &str = "3737";

/// Draws one character at `scale` pixels a unit: calls `plot(x, y, coverage)` for every pixel the pen touches, relative
/// to the top left of the character's cell.
pub fn draw(character: char, scale: f32, pen: f32, mut plot: impl FnMut(usize, usize, u8)) {
    let strokes = match character {
        ' '..='~' => ASCII[character as usize - 32],
        '\u{2713}' => TICK,
        '\u{2717}' => CROSS,
        '\u{2022}' => BULLET,
        _ => ASCII['?' as usize - 32],
    };
    let mut pieces = [(0.0, 0.0, 0.0, 0.0); MAX_PIECES];
    let count = flatten(strokes, scale, &mut pieces);
    let radius = pen / 2.0;
    for y in 0..(HEIGHT as f32 * scale) as usize {
        for x in 0..(ADVANCE as f32 * scale) as usize {
            let centre = (x as f32 + 0.5, y as f32 + 0.5);
            let distance = pieces[..count].iter().fold(f32::MAX, |least, piece| least.min(distance(centre, *piece)));
            // Squared up to here; one square root a pixel, and only near the stroke.
            let reach = radius + 0.5;
            if distance < reach * reach {
                let coverage = (reach - super::maths::sqrt(distance)).min(1.0);
                plot(x, y, (coverage * 255.0) as u8);
            }
        }
    }
}

type Piece = (f32, f32, f32, f32);

/// Turns strokes into straight pieces, in pixels; returns how many.
fn flatten(strokes: &str, scale: f32, pieces: &mut [Piece; MAX_PIECES]) -> usize {
    let mut count = 0;
    let mut push = |from: (f32, f32), to: (f32, f32)| {
        if let Some(piece) = pieces.get_mut(count) {
            *piece = (from.0, from.1, to.0, to.1);
            count += 1;
        }
    };
    let digit = |byte: u8| f32::from(if byte <= b'9' { byte - b'0' } else { byte - b'a' + 10 });
    // The pen runs through pixel centres at every whole scale, so stems are crisp.
    let place = |x: u8, y: u8| ((digit(x) + 1.0) * scale + 0.5, (digit(y) + 1.0) * scale + 0.5);
    for stroke in strokes.split(' ') {
        let mut bytes = stroke.bytes();
        let mut at: Option<(f32, f32)> = None;
        while let Some(first) = bytes.next() {
            let curve = first == b'~';
            let mut next = |x: Option<u8>| Some(place(x.or_else(|| bytes.next())?, bytes.next()?));
            let Some(point) = next((!curve).then_some(first)) else { break };
            match at {
                None => at = Some(point),
                Some(start) if curve => {
                    let Some(end) = next(None) else { break };
                    let mut from = start;
                    for step in 1..=CURVE_STEPS {
                        let t = step as f32 / CURVE_STEPS as f32;
                        let mix =
                            |a: f32, b: f32, c: f32| (1.0 - t) * (1.0 - t) * a + 2.0 * t * (1.0 - t) * b + t * t * c;
                        let to = (mix(start.0, point.0, end.0), mix(start.1, point.1, end.1));
                        push(from, to);
                        from = to;
                    }
                    at = Some(end);
                }
                Some(start) => {
                    push(start, point);
                    at = Some(point);
                }
            }
        }
    }
    count
}

/// Square of the distance from a point to a straight piece.
fn distance((px, py): (f32, f32), (ax, ay, bx, by): Piece) -> f32 {
    let (dx, dy) = (bx - ax, by - ay);
    let length = dx * dx + dy * dy;
    let t = if length > 0.0 { (((px - ax) * dx + (py - ay) * dy) / length).clamp(0.0, 1.0) } else { 0.0 };
    let (ex, ey) = (px - ax - t * dx, py - ay - t * dy);
    ex * ex + ey * ey
}
