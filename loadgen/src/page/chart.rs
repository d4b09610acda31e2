//! A chart of lines as SVG. Named here only: `plotters`, which draws axes, grid and lines. Colours
//! are written as they are for paper; the page's style replaces them in the dark.

use std::fmt::Write;
use std::ops::Range;

use anyhow::anyhow;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::axis::Axis;

/// Coordinates are whole numbers, so the drawing is made larger than it is shown.
const SCALE: i32 = 4;
const FONT: f64 = 16.0 * SCALE as f64;
const LEFT: i32 = 62 * SCALE;
const BOTTOM: i32 = 34 * SCALE;
const TOP: i32 = 12 * SCALE;
/// Room for the names of lines: for each character, and beside them.
const NAME: i32 = 7 * SCALE;
const NAME_SIDES: i32 = 18 * SCALE;
const LINE_GAP: i32 = 17 * SCALE;
const TICK: i32 = 6 * SCALE;
const STROKE: u32 = 2 * SCALE as u32;
/// Behind what is not measured.
const SHADE: f64 = 0.07;

const INK: RGBColor = RGBColor(0x33, 0x33, 0x33);
const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);

/// Told apart by every kind of colour vision (Okabe and Ito); `style.css` has their light versions.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xa6, 0x76, 0x1d),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x77, 0x77, 0x77),
];

/// The colour of a run as it is drawn.
fn colour(run: usize) -> String {
    let RGBColor(r, g, b) = COLOURS[run % COLOURS.len()];
    format!("#{r:02X}{g:02X}{b:02X}")
}

/// The same by its number in the page's style.
pub(super) fn number_of_colour(run: usize) -> usize {
    run % COLOURS.len()
}

/// How much of the page a chart takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Size {
    /// The whole width.
    Whole,
    /// Two are beside each other.
    Half,
}

impl Size {
    fn units(self) -> (i32, i32) {
        match self {
            Self::Whole => (1_000 * SCALE, 380 * SCALE),
            Self::Half => (490 * SCALE, 270 * SCALE),
        }
    }
}

/// A chart, ready to be drawn.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    /// How large it is drawn.
    pub(super) size: Size,
    /// What it shows, for those who cannot see it.
    pub(super) title: String,
    /// Along.
    pub(super) x: Axis,
    /// Up.
    pub(super) y: Axis,
    /// What is left of this is not measured.
    pub(super) shaded_until: Option<f64>,
    /// In the order of the runs.
    pub(super) lines: Vec<Line>,
}

/// What belongs to one run.
#[derive(Clone, Debug)]
pub(super) struct Line {
    /// Number of the run.
    pub(super) run: usize,
    /// Written at its end.
    pub(super) name: String,
    /// Drawn with gaps, because the run is void.
    pub(super) is_void: bool,
    /// From left to right, as drawn.
    pub(super) points: Vec<(f64, f64)>,
    /// Shown under the pointer: the number of a point and a sentence.
    pub(super) titles: Vec<(usize, String)>,
}

type Failed = anyhow::Error;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

impl Chart {
    /// Draws it.
    pub(super) fn svg(&self) -> Result<String, Failed> {
        let mut svg = String::new();
        let titles = {
            let (width, height) = self.size.units();
            let backend = SVGBackend::with_string(&mut svg, (width as u32, height as u32));
            let area = backend.into_drawing_area();
            let titles = self.draw(&area)?;
            area.present().map_err(|error| anyhow!("a chart cannot be drawn: {error}"))?;
            titles
        };
        let role = format!("<svg role=\"img\" aria-label=\"{}\" ", escaped(&self.title));
        let svg = svg.replacen("<svg ", &role, 1);
        Ok(svg.replacen("</svg>", &format!("{titles}</svg>"), 1))
    }

    /// Everything but the titles, which are returned: no backend of `plotters` has them.
    fn draw(&self, area: &Area<'_>) -> Result<String, Failed> {
        let failed = |error: &dyn std::error::Error| anyhow!("a chart cannot be drawn: {error}");
        let longest = self.lines.iter().map(|line| line.name.chars().count()).max().unwrap_or(0);
        let right = NAME_SIDES + NAME * longest as i32;
        let mut chart = ChartBuilder::on(area)
            .margin_top(TOP)
            .margin_right(right)
            .x_label_area_size(BOTTOM)
            .y_label_area_size(LEFT)
            .build_cartesian_2d(Scale(self.x.clone()), Scale(self.y.clone()))
            .map_err(|error| failed(&error))?;
        if let Some(until) = self.shaded_until {
            let shade = [(self.x.from, self.y.from), (self.x.clamp(until), self.y.to)];
            let shade = Rectangle::new(shade, INK.mix(SHADE).filled());
            chart.draw_series([shade]).map(|_| ()).map_err(|error| failed(&error))?;
        }
        let font = ("sans-serif", FONT).into_font().color(&INK);
        chart
            .configure_mesh()
            .set_all_tick_mark_size(TICK)
            .label_style(font)
            .bold_line_style(GRID.stroke_width(SCALE as u32))
            .light_line_style(TRANSPARENT)
            .axis_style(GRID.stroke_width(SCALE as u32))
            .draw()
            .map_err(|error| failed(&error))?;

        let mut titles = String::new();
        let mut ends = Vec::new();
        for line in &self.lines {
            let style = COLOURS[line.run % COLOURS.len()].stroke_width(STROKE);
            let points: Vec<(f64, f64)> =
                line.points.iter().map(|(x, y)| (self.x.clamp(*x), self.y.clamp(*y))).collect();
            let drawn = points.iter().copied();
            if line.is_void {
                let dash = DashedLineSeries::new(drawn, 7 * SCALE, 5 * SCALE, style);
                chart.draw_series(dash).map(|_| ()).map_err(|error| failed(&error))?;
            } else {
                let solid = LineSeries::new(drawn, style);
                chart.draw_series(solid).map(|_| ()).map_err(|error| failed(&error))?;
            }
            for (index, title) in &line.titles {
                let Some(point) = points.get(*index) else { continue };
                let (x, y) = chart.backend_coord(point);
                let (radius, colour) = (4 * SCALE, colour(line.run));
                let _ = writeln!(
                    titles,
                    "<g class=\"point\"><circle cx=\"{x}\" cy=\"{y}\" r=\"{}\" opacity=\"0\"/>\
                     <circle class=\"dot\" cx=\"{x}\" cy=\"{y}\" r=\"{radius}\" fill=\"{colour}\"/>\
                     <title>{}</title></g>",
                    3 * radius,
                    escaped(title)
                );
            }
            if let Some(last) = points.last() {
                ends.push((chart.backend_coord(last).1, line));
            }
        }
        self.draw_names(area, right, ends)?;
        Ok(titles)
    }

    /// Each name beside the end of its line; names that would meet move apart.
    fn draw_names(
        &self,
        area: &Area<'_>,
        right: i32,
        mut ends: Vec<(i32, &Line)>,
    ) -> Result<(), Failed> {
        let (width, height) = self.size.units();
        ends.sort_by_key(|(y, line)| (*y, line.run));
        let mut places: Vec<i32> = ends.iter().map(|(y, _)| *y).collect();
        apart(&mut places, LINE_GAP, (TOP, height - BOTTOM));
        let font = ("sans-serif", FONT).into_font();
        for ((_, line), y) in ends.iter().zip(places) {
            let style = font.color(&COLOURS[line.run % COLOURS.len()]);
            let style = style.pos(Pos::new(HPos::Left, VPos::Center));
            area.draw_text(&line.name, &style, (width - right + NAME, y))
                .map_err(|error| anyhow!("a chart cannot be drawn: {error}"))?;
        }
        Ok(())
    }
}

/// An axis as `plotters` wants it.
#[derive(Clone, Debug)]
struct Scale(Axis);

impl Ranged for Scale {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let share = (value - self.0.from) / (self.0.to - self.0.from);
        from + (f64::from(to - from) * share).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.0.ticks.iter().map(|(at, _)| *at).collect()
    }

    fn range(&self) -> Range<f64> {
        self.0.from..self.0.to
    }
}

impl ValueFormatter<f64> for Scale {
    fn format(at: &f64) -> String {
        at.to_string()
    }

    fn format_ext(&self, at: &f64) -> String {
        let text = self.0.ticks.iter().find(|(tick, _)| tick == at);
        text.map_or_else(String::new, |(_, text)| text.clone())
    }
}

/// Moves ascending places at least `gap` apart, between two ends as long as they have room.
fn apart(places: &mut [i32], gap: i32, (top, bottom): (i32, i32)) {
    let mut least = top;
    for place in places.iter_mut() {
        *place = (*place).max(least);
        least = *place + gap;
    }
    let mut most = bottom;
    for place in places.iter_mut().rev() {
        *place = (*place).min(most);
        most = *place - gap;
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_its_ticks_its_names_and_its_titles_and_escapes_them() {
        let svg = chart("<a> & \"b\"").svg().unwrap();
        for text in
            ["100 µs", "0 s", "&lt;a&gt; &amp; &quot;b&quot;", "<title>one &lt; two</title>"]
        {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
        assert!(!svg.contains("<a>"));
        assert!(svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn the_line_of_a_void_run_has_gaps() {
        let mut chart = chart("a");
        let solid = chart.svg().unwrap().matches("<polyline").count();
        chart.lines[0].is_void = true;
        assert!(chart.svg().unwrap().matches("<polyline").count() > solid + 5);
    }

    #[test]
    fn names_move_apart_and_stay_inside() {
        let mut places = [10, 11, 12, 98];
        apart(&mut places, 20, (0, 100));
        assert_eq!(places, [10, 30, 50, 98]);
        let mut places = [95, 96, 97];
        apart(&mut places, 20, (0, 100));
        assert_eq!(places, [60, 80, 100]);
    }

    fn chart(name: &str) -> Chart {
        Chart {
            size: Size::Half,
            title: "times".to_owned(),
            shaded_until: Some(1.0),
            x: Axis::of_seconds(0.0, 10.0),
            y: Axis::of_times(10.0, 1_000.0),
            lines: vec![Line {
                run: 0,
                name: name.to_owned(),
                is_void: false,
                points: vec![(0.0, 1.5), (5.0, 2.0), (10.0, f64::INFINITY)],
                titles: vec![(1, "one < two".to_owned()), (9, "nowhere".to_owned())],
            }],
        }
    }
}
