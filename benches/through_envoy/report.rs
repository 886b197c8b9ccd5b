//! What was measured, as Markdown.

use crate::{
    Settings,
    variant::{Sample, Variant},
};

/// A comparison of two variants by one figure.
struct Ratio {
    what: &'static str,
    of: usize,
    to: usize,
    figure: fn(&Sample) -> Option<f64>,
    target: Option<Target>,
}

enum Target {
    AtLeast(f64),
    AtMost(f64),
}

const THROUGHPUT: fn(&Sample) -> Option<f64> = |sample| Some(sample.per_second);
const CPU: fn(&Sample) -> Option<f64> = |sample| sample.processor;

/// By the places of the variants.
const RATIOS: [Ratio; 12] = [
    Ratio { what: "(b) to (a), throughput: the price of ext_proc", of: 1, to: 0, figure: THROUGHPUT, target: None },
    Ratio { what: "(c) to (b), throughput", of: 2, to: 1, figure: THROUGHPUT, target: Some(Target::AtLeast(0.97)) },
    Ratio { what: "(c) to (b), CPU a request", of: 2, to: 1, figure: CPU, target: Some(Target::AtMost(1.05)) },
    Ratio { what: "(d) to (c), throughput", of: 3, to: 2, figure: THROUGHPUT, target: None },
    Ratio { what: "(d) to (c), CPU a request", of: 3, to: 2, figure: CPU, target: None },
    Ratio { what: "(e) to (a), throughput", of: 4, to: 0, figure: THROUGHPUT, target: Some(Target::AtLeast(0.95)) },
    Ratio { what: "(f) JSON to (c), CPU a request", of: 5, to: 2, figure: CPU, target: Some(Target::AtMost(1.0)) },
    Ratio { what: "(f) page to (c), CPU a request", of: 6, to: 2, figure: CPU, target: Some(Target::AtMost(1.0)) },
    Ratio { what: "(f) page to (c), throughput", of: 6, to: 2, figure: THROUGHPUT, target: None },
    Ratio {
        what: "(g) with to without the filter",
        of: 8,
        to: 7,
        figure: THROUGHPUT,
        target: Some(Target::AtLeast(0.98)),
    },
    Ratio { what: "(h) to (c), CPU a request: 100,000 routes to one", of: 9, to: 2, figure: CPU, target: None },
    Ratio {
        what: "(h) as (f) to as (c), CPU a request",
        of: 10,
        to: 9,
        figure: CPU,
        target: Some(Target::AtMost(1.0)),
    },
];

pub fn print(settings: &Settings, variants: &[Variant<'_>], samples: &[Vec<Sample>]) {
    let Settings { rounds, seconds, connections, .. } = settings;
    println!("## Through one Envoy\n");
    println!("{rounds} rounds of {seconds} s for each variant, {connections} connections, medians.\n");
    println!("| variant | requests a second | p50, ms | p99, ms | CPU s a million, processor | and Envoy |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: |");
    for (variant, samples) in variants.iter().zip(samples).filter(|(_, samples)| !samples.is_empty()) {
        let median = |figure: fn(&Sample) -> Option<f64>| quartiles(samples.iter().filter_map(figure).collect());
        let cpu = median(CPU).map_or("–".to_owned(), |[_, cpu, _]| format!("{cpu:.1}"));
        let figures: [fn(&Sample) -> Option<f64>; 4] =
            [THROUGHPUT, |sample| Some(sample.p50), |sample| Some(sample.p99), |sample| Some(sample.envoy)];
        let [per_second, p50, p99, envoy] = figures.map(|figure| median(figure).map_or(0.0, |[_, median, _]| median));
        println!("| {} | {per_second:.0} | {p50:.2} | {p99:.2} | {cpu} | {envoy:.1} |", variant.name);
    }
    println!("\nRatios of the same round:\n");
    println!("| ratio | median | quartiles | target | |");
    println!("| --- | ---: | --- | --- | --- |");
    for Ratio { what, of, to, figure, target } in RATIOS {
        let ratios = samples[of].iter().zip(&samples[to]).filter_map(|(of, to)| Some(figure(of)? / figure(to)?));
        let Some([low, median, high]) = quartiles(ratios.collect()) else { continue };
        let (target, reached) = match target {
            None => (String::new(), ""),
            Some(Target::AtLeast(least)) => (format!("≥ {least}"), mark(median >= least)),
            Some(Target::AtMost(most)) => (format!("≤ {most}"), mark(median <= most)),
        };
        println!("| {what} | {median:.3} | {low:.3} to {high:.3} | {target} | {reached} |");
    }
}

pub fn mark(reached: bool) -> &'static str {
    if reached { "reached" } else { "not reached" }
}

fn quartiles(mut values: Vec<f64>) -> Option<[f64; 3]> {
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    let at = |part: f64| {
        let place = part * last as f64;
        let (low, high) = (values[place.floor() as usize], values[place.ceil() as usize]);
        low + (high - low) * place.fract()
    };
    Some([at(0.25), at(0.5), at(0.75)])
}
