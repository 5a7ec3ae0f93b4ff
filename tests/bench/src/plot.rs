//! A plot for the documents: time against amount, both axes logarithmic, so that what grows in proportion runs along the
//! dashed lines.

use std::fmt::Write as _;

/// One command.
#[derive(Clone, Debug)]
pub(crate) struct Curve {
    /// Its name.
    pub(crate) name: String,
    /// Amount and seconds, by amount.
    pub(crate) points: Vec<(f64, f64)>,
}

const COLOURS: [&str; 6] = ["#1b6ca8", "#c0392b", "#2e8b57", "#8e44ad", "#d68910", "#555555"];
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 420.0;
/// Left, right, top, bottom.
const MARGINS: [f64; 4] = [60.0, 170.0, 20.0, 50.0];

/// The SVG document.
pub(crate) fn log_log(across: &str, up: &str, curves: &[Curve]) -> String {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let frame = Frame {
        x: bounds(points().map(|point| point.0), 2.0),
        y: bounds(points().map(|point| point.1), 10.0),
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    frame.axes(&mut svg, across, up);
    for (number, curve) in curves.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        frame.curve(&mut svg, curve, colour);
        let (x, y) = (WIDTH - MARGINS[1] + 12.0, MARGINS[2] + 14.0 + 18.0 * number as f64);
        let _ = writeln!(svg, "<text x=\"{x}\" y=\"{y}\" fill=\"{colour}\">{}</text>", curve.name);
    }
    svg.push_str("</svg>\n");
    svg
}

/// The powers of `base` around all values.
fn bounds(values: impl Iterator<Item = f64>, base: f64) -> (f64, f64) {
    let (least, most) =
        values.fold((f64::MAX, f64::MIN_POSITIVE), |(a, b), value| (a.min(value), b.max(value)));
    let power = |value: f64, round: fn(f64) -> f64| base.powf(round(value.max(1e-6).log(base)));
    (
        power(least.min(most), f64::floor),
        power(most, f64::ceil).max(power(least.min(most), f64::floor) * base),
    )
}

struct Frame {
    x: (f64, f64),
    y: (f64, f64),
}

impl Frame {
    fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let part = |value: f64, (from, to): (f64, f64)| (value / from).ln() / (to / from).ln();
        let [left, right, top, bottom] = MARGINS;
        (
            left + part(x, self.x) * (WIDTH - left - right),
            HEIGHT - bottom - part(y, self.y) * (HEIGHT - top - bottom),
        )
    }

    fn line(&self, svg: &mut String, from: (f64, f64), to: (f64, f64), style: &str) {
        let ((x1, y1), (x2, y2)) = (self.place(from), self.place(to));
        let _ = writeln!(svg, "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" {style}/>");
    }

    fn axes(&self, svg: &mut String, across: &str, up: &str) {
        let grid = "stroke=\"#dddddd\"";
        let mut x = self.x.0;
        while x <= self.x.1 * 1.001 {
            self.line(svg, (x, self.y.0), (x, self.y.1), grid);
            let (at, bottom) = self.place((x, self.y.0));
            let _ = writeln!(
                svg,
                "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{x}</text>",
                bottom + 16.0
            );
            x *= 2.0;
        }
        let mut y = self.y.0;
        while y <= self.y.1 * 1.001 {
            self.line(svg, (self.x.0, y), (self.x.1, y), grid);
            let (left, at) = self.place((self.x.0, y));
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{y}</text>",
                left - 6.0,
                at + 4.0
            );
            y *= 10.0;
        }
        let (middle, bottom) = self.place(((self.x.0 * self.x.1).sqrt(), self.y.0));
        let _ = writeln!(
            svg,
            "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{across}</text>",
            bottom + 38.0
        );
        let _ = writeln!(svg, "<text x=\"12\" y=\"{:.1}\">{up}</text>", MARGINS[2] - 6.0);
    }

    /// The curve, and how it would go on from its first point if time grew as the amount does.
    fn curve(&self, svg: &mut String, curve: &Curve, colour: &str) {
        let (Some(first), Some(last)) = (curve.points.first(), curve.points.last()) else { return };
        let proportional = first.1 * last.0 / first.0;
        let end = if proportional <= self.y.1 {
            (last.0, proportional)
        } else {
            (first.0 * self.y.1 / first.1, self.y.1)
        };
        self.line(svg, *first, end, &format!("stroke=\"{colour}\" stroke-dasharray=\"3 4\" opacity=\"0.5\""));
        for pair in curve.points.windows(2) {
            self.line(svg, pair[0], pair[1], &format!("stroke=\"{colour}\" stroke-width=\"2\""));
        }
        for point in &curve.points {
            let (x, y) = self.place(*point);
            let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_in_proportion_lies_on_its_dashed_line() {
        let curve = Curve { name: "a".to_owned(), points: vec![(1.0, 0.2), (16.0, 3.2)] };
        let svg = log_log("amount", "seconds", &[curve]);
        let lines: Vec<&str> =
            svg.lines().filter(|line| line.contains("#1b6ca8") && line.starts_with("<line")).collect();
        let ends = |line: &str| line.split("stroke").next().map(str::to_owned);
        assert_eq!(lines.len(), 2);
        assert_eq!(ends(lines[0]), ends(lines[1]));
    }

    #[test]
    fn every_point_lies_inside_the_frame() {
        let frame =
            Frame { x: bounds([1.0, 16.0].into_iter(), 2.0), y: bounds([0.03, 7.0].into_iter(), 10.0) };
        for point in [(1.0, 0.03), (16.0, 7.0)] {
            let (x, y) = frame.place(point);
            assert!(
                (MARGINS[0]..=WIDTH - MARGINS[1]).contains(&x)
                    && (MARGINS[2]..=HEIGHT - MARGINS[3]).contains(&y)
            );
        }
    }
}
