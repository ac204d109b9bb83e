from tests.api import access_table


def test_the_page_of_who_may_do_what_says_what_the_tests_ask() -> None:
    says = "write it anew: python -m tests.api.access_table"
    assert access_table.DOCUMENT.read_text() == access_table.text(), says
