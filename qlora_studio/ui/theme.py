"""How Gradio's own controls look; everything else stands in `assets/page.css`."""

from __future__ import annotations

from gradio import themes

TEAL = themes.Color(
    name="teal",
    c50="#eefbf8", c100="#cdf4ec", c200="#9be8d9", c300="#5fd4c1", c400="#2fbba7",
    c500="#159f8c", c600="#0c8073", c700="#0e655c", c800="#10504a", c900="#12423d", c950="#042725",
)  # fmt: skip
PAPER, INK, CARD = "#f5f7f7", "#0d0f10", "#161a1b"
LINE, LINE_DARK = "#e2e6e6", "#282e30"
QUIET, QUIET_DARK = "#586163", "#95a0a3"
"""Secondary text; 4.5 to 1 and better on both grounds."""


def make_theme() -> themes.Base:
    """The studio's theme. Only weights 400 and 700 of IBM Plex are whole in Gradio's bundle."""
    theme = themes.Base(
        primary_hue=TEAL,
        secondary_hue=TEAL,
        neutral_hue=themes.colors.zinc,
        radius_size=themes.sizes.radius_md,
        text_size=themes.sizes.text_md,
        font=[themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif"],
        font_mono=[themes.LocalFont("IBM Plex Mono", weights=(400, 700)), "ui-monospace", "monospace"],
    )
    return theme.set(
        body_background_fill=PAPER,
        body_background_fill_dark=INK,
        body_text_color_subdued=QUIET,
        body_text_color_subdued_dark=QUIET_DARK,
        background_fill_primary_dark=CARD,
        background_fill_secondary="#eff2f2",
        background_fill_secondary_dark=INK,
        block_background_fill="#ffffff",
        block_background_fill_dark=CARD,
        block_border_color=LINE,
        block_border_color_dark=LINE_DARK,
        block_info_text_color=QUIET,
        block_info_text_color_dark=QUIET_DARK,
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        block_radius="10px",
        block_shadow="none",
        block_title_text_color="#1d2426",
        block_title_text_color_dark="#e8ecec",
        block_title_text_weight="700",
        border_color_primary=LINE,
        border_color_primary_dark=LINE_DARK,
        button_border_width="1px",
        button_large_radius="8px",
        button_large_text_weight="700",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_500",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_400",
        button_primary_text_color_dark="#041412",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_dark="#1e2426",
        button_secondary_background_fill_hover="#eff3f3",
        button_secondary_background_fill_hover_dark="#272e30",
        button_secondary_border_color="#d9dfdf",
        button_secondary_border_color_dark="#30383a",
        button_small_radius="8px",
        checkbox_background_color_dark="#101415",
        checkbox_label_background_fill="#ffffff",
        checkbox_label_background_fill_dark=CARD,
        checkbox_label_background_fill_hover="#f3f6f6",
        checkbox_label_background_fill_hover_dark="#1e2426",
        checkbox_label_background_fill_selected_dark=CARD,
        checkbox_label_border_color=LINE,
        checkbox_label_border_color_dark="#30383a",
        checkbox_label_border_width="1px",
        color_accent_soft_dark="#0f3a35",
        border_color_accent_subdued_dark="#17564e",
        container_radius="10px",
        input_background_fill="#ffffff",
        input_background_fill_dark="#101415",
        input_border_color="#d9dfdf",
        input_border_color_dark="#30383a",
        input_border_color_focus="*primary_500",
        input_border_color_focus_dark="*primary_500",
        input_border_width="1px",
        input_radius="8px",
    )
