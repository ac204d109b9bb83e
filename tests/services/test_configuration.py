from tests.services import configuration


def test_the_page_of_the_settings_is_true() -> None:
    says = "write it anew: python -m tests.services.configuration"
    assert configuration.DOCUMENT.read_text() == configuration.text(), says


def test_every_setting_says_what_it_is_for() -> None:
    silent = [one.name for _, settings in configuration.sections() for one in settings if not one.purpose]
    assert not silent, "say it in a line below the field"
    assert sum(len(settings) for _, settings in configuration.sections()) > 100
